import java.util.concurrent.atomic.AtomicLong;
import org.HdrHistogram.ConcurrentHistogram;
import org.HdrHistogram.Histogram;

/** What has become of one client's records. */
final class Ledger {
    private final AtomicLong acknowledged = new AtomicLong();
    private final AtomicLong errors = new AtomicLong();
    /**
     * Latencies outside of the window and in it. Both are taken, by the same instructions: where only those in the window were, the
     * virtual machine had compiled the acknowledgement without its taking, threw that away when the window began, and stood still for half a
     * second in every producer's thread, which then was the 99th percentile of any broker.
     */
    private final Histogram[] latencies = {new ConcurrentHistogram(3), new ConcurrentHistogram(3)};
    private volatile String firstError;
    private volatile long begin = Long.MAX_VALUE;
    private volatile long end = Long.MAX_VALUE;

    /** Records that were meant to be sent between these moments have their latency taken. */
    void window(long begin, long end) {
        this.begin = begin;
        this.end = end;
    }

    void acknowledged(long intendedNs) {
        acknowledged.incrementAndGet();
        // Without a branch, see above: the sign of a difference is 0 or -1.
        int begun = 1 + (int) ((intendedNs - begin) >> 63);
        int beforeEnd = (int) ((intendedNs - end) >>> 63);
        latencies[begun & beforeEnd].recordValue(Math.max(1, System.nanoTime() - intendedNs));
    }

    void failed(Throwable failure) {
        if (firstError == null) {
            firstError = String.valueOf(failure);
        }
        errors.incrementAndGet();
    }

    long acknowledged() {
        return acknowledged.get();
    }

    long settledInWindow() {
        return latencies[1].getTotalCount();
    }

    long errors() {
        return errors.get();
    }

    String firstError() {
        return firstError;
    }

    void addTo(Histogram all) {
        all.add(latencies[1]);
    }

    /** Nanoseconds in, microseconds out. */
    static String json(Histogram latencies) {
        if (latencies.getTotalCount() == 0) {
            return "null";
        }
        return String.format(
            "{\"count\":%d,\"mean_us\":%.1f,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"p99_9_us\":%.1f,\"p99_99_us\":%.1f,\"max_us\":%.1f}",
            latencies.getTotalCount(), latencies.getMean() / 1e3, at(latencies, 50), at(latencies, 90), at(latencies, 99), at(latencies, 99.9),
            at(latencies, 99.99), latencies.getMaxValue() / 1e3);
    }

    private static double at(Histogram latencies, double percentile) {
        return latencies.getValueAtPercentile(percentile) / 1e3;
    }
}
