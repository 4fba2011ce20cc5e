/** When each record is meant to be sent, in seconds from the start. It does not depend on when earlier ones were. */
interface Schedule {
    /** When the n-th record, from 0, is due. */
    double seconds(long n);

    /** How many are due by then. */
    double due(double seconds);

    /** Records a second then. */
    double rate(double seconds);

    static Schedule steady(double rate) {
        return new Schedule() {
            @Override
            public double seconds(long n) {
                return n / rate;
            }

            @Override
            public double due(double seconds) {
                return seconds * rate;
            }

            @Override
            public double rate(double seconds) {
                return rate;
            }
        };
    }

    /** Begins with a rate that doubles every so many seconds: rate(t) = first * e^(t / scale), and due is its integral. */
    static Schedule rising(double first, double doubling) {
        double scale = doubling / Math.log(2);
        return new Schedule() {
            @Override
            public double seconds(long n) {
                return scale * Math.log1p(n / (first * scale));
            }

            @Override
            public double due(double seconds) {
                return first * scale * Math.expm1(seconds / scale);
            }

            @Override
            public double rate(double seconds) {
                return first * Math.exp(seconds / scale);
            }
        };
    }
}
