import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.locks.LockSupport;
import org.HdrHistogram.Histogram;

/**
 * Producers in one process, each a client of its own: as fast as each of them accepts records, at a fixed rate, or until a number of records is
 * acknowledged.
 *
 * Arguments are name=value: client (kafka or nats), bootstrap, topic, producers, partitions, record_bytes, warm_up and seconds (of the
 * measured window), rate (records a second of all producers; 0: as fast as they accept them), doubling
 * (seconds in which the rate doubles until acknowledgements fall behind; 0: it stays), total (records; 0: until the window ends);
 * with kafka.NAME=VALUE a setting of every producer. Standard output gets a line of JSON when the window begins, one when it ends, and the result. Latency
 * runs from the moment at which a record was meant to be sent to its acknowledgement.
 */
public final class Load {
    /** A record that is late by less than this is sent with those before it: waking up for each would cost the brokers' cores. */
    private static final long TICK_NS = 250_000;
    /** How long records that were sent in the window may take after its end. */
    private static final long DRAIN_NS = 10_000_000_000L;
    /** What a producer queues by default. */
    private static final long QUEUE_BYTES = 32 << 20;
    /** The warm-up may take so many times as long as it should. */
    private static final long MOST_WARM_UPS = 3;
    /** Acknowledgements keep up while they are no more than so much later than what is due. */
    private static final double KEEPS_UP_SECONDS = 0.25;
    /** And have fallen behind for good at so much. */
    private static final double BEHIND_SECONDS = 1.5;
    /** Threads that send on a schedule. */
    private static final int MOST_PACERS = 2;

    /** One client. */
    interface Sink {
        /** Queues a record; blocks while the client's own queue is full. */
        void send(byte[] key, byte[] value, long intendedNs) throws Exception;
    }

    private final Arguments arguments;
    private final int producers;
    private final byte[] value;
    private final double rate;
    private Schedule schedule;
    private double sustained;
    private final List<Ledger> ledgers = new ArrayList<>();
    private final List<Sink> sinks = new ArrayList<>();
    private volatile boolean stopping;

    private Load(Arguments arguments) throws Exception {
        this.arguments = arguments;
        producers = arguments.integer("producers");
        value = new byte[arguments.integer("record_bytes")];
        new SplittableRandom(1).nextBytes(value);
        rate = arguments.number("rate");
        for (int i = 0; i < producers; i++) {
            Ledger ledger = new Ledger();
            ledgers.add(ledger);
            sinks.add("nats".equals(arguments.text("client")) ? new NatsSink(arguments, ledger, i == 0) : new KafkaSink(arguments, ledger));
        }
    }

    public static void main(String[] words) throws Exception {
        new Load(new Arguments(words)).run();
        System.out.flush();
        // What it has used is read from outside at the end of the window; until then the process is to be there.
        Thread.sleep(200);
        // What is still queued is not waited for: it belongs to no window.
        Runtime.getRuntime().halt(0);
    }

    private void run() throws Exception {
        long started = System.nanoTime();
        long warm = started + (long) (arguments.number("warm_up") * 1e9);
        long length = (long) (arguments.number("seconds") * 1e9);
        long total = (long) arguments.number("total");
        if (rate > 0) {
            // The window is a part of the schedule.
            ledgers.forEach(ledger -> ledger.window(warm, warm + length));
            schedule = arguments.number("doubling") > 0 ? Schedule.rising(rate, arguments.number("doubling")) : Schedule.steady(rate);
            int pacers = Math.min(producers, MOST_PACERS);
            for (int i = 0; i < pacers; i++) {
                int first = i;
                start(() -> sendOnSchedule(started, first, pacers, warm + length));
            }
        } else {
            for (int i = 0; i < producers; i++) {
                int index = i;
                start(() -> sendAlways(index));
            }
        }
        if (arguments.number("doubling") > 0) {
            untilBehind(started, warm + length);
        } else if (total > 0) {
            untilAcknowledged(total);
        } else {
            long begin = rate > 0 ? warm : whenWarm(warm, started);
            measure(begin, begin + length);
        }
    }

    /** At full load the queues fill first, which takes the cores from the broker: half of what they hold is to be acknowledged, unless that takes too long. */
    private long whenWarm(long warm, long started) throws Exception {
        long wanted = (long) producers * QUEUE_BYTES / 2 / value.length;
        long latest = started + MOST_WARM_UPS * (warm - started);
        while (System.nanoTime() < warm || (acknowledged() < wanted && System.nanoTime() < latest)) {
            Thread.sleep(5);
        }
        return System.nanoTime();
    }

    private void untilAcknowledged(long total) throws Exception {
        System.out.println("{\"event\":\"begin\"}");
        long started = System.nanoTime();
        while (acknowledged() < total && errors() == 0) {
            Thread.sleep(5);
        }
        stopping = true;
        long ended = System.nanoTime();
        System.out.println("{\"event\":\"end\"}");
        print((ended - started) / 1e9, acknowledged(), 0, new ArrayList<>(), new Histogram(3));
    }

    /** The rate rises until acknowledgements fall behind; what was the last rate at which they did not is what is sustained. */
    private void untilBehind(long started, long end) throws Exception {
        System.out.println("{\"event\":\"begin\"}");
        double sustained = 0;
        double seconds = 0;
        while (System.nanoTime() < end) {
            Thread.sleep(20);
            seconds = (System.nanoTime() - started) / 1e9;
            double behind = (schedule.due(seconds) - acknowledged()) / schedule.rate(seconds);
            if (behind <= KEEPS_UP_SECONDS) {
                sustained = schedule.rate(seconds);
            } else if (behind > BEHIND_SECONDS) {
                break;
            }
        }
        stopping = true;
        long records = acknowledged();
        System.out.println("{\"event\":\"end\"}");
        this.sustained = sustained;
        print(seconds, records, 0, new ArrayList<>(), new Histogram(3));
    }

    private void measure(long begin, long end) throws Exception {
        sleepUntil(begin);
        System.out.println("{\"event\":\"begin\"}");
        long beganAt = System.nanoTime();
        long atBegin = acknowledged();
        List<Long> perSecond = new ArrayList<>();
        long last = atBegin;
        for (long tick = begin + 1_000_000_000L; tick <= end; tick += 1_000_000_000L) {
            sleepUntil(tick);
            long now = acknowledged();
            perSecond.add(now - last);
            last = now;
        }
        sleepUntil(end);
        long records = acknowledged() - atBegin;
        long endedAt = System.nanoTime();
        System.out.println("{\"event\":\"end\"}");
        stopping = true;
        Histogram latencies = new Histogram(3);
        long missing = 0;
        if (rate > 0) {
            // Each pacer gives its producers turns, so how many were due is known without them.
            long due = (long) (rate * (end - begin) / 1e9);
            while (settledInWindow() < due - MOST_PACERS && System.nanoTime() < end + DRAIN_NS) {
                Thread.sleep(5);
            }
            ledgers.forEach(ledger -> ledger.addTo(latencies));
            missing = Math.max(0, due - MOST_PACERS - settledInWindow());
            if (missing > 0) {
                // They have waited at least for so long.
                latencies.recordValueWithCount(Math.max(1, System.nanoTime() - end), missing);
            }
        }
        print((endedAt - beganAt) / 1e9, records, missing, perSecond, latencies);
    }

    private void sendAlways(int index) throws Exception {
        SplittableRandom random = new SplittableRandom(index);
        Sink sink = sinks.get(index);
        while (!stopping) {
            sink.send(key(random), value, System.nanoTime());
        }
    }

    /** Every `pacers`-th record of the schedule from `first` on, the producers taking turns. */
    private void sendOnSchedule(long start, int first, int pacers, long end) throws Exception {
        SplittableRandom random = new SplittableRandom(first);
        for (long n = first; !stopping; n += pacers) {
            long intended = start + (long) (schedule.seconds(n) * 1e9);
            if (intended >= end) {
                return;
            }
            long early = intended - System.nanoTime();
            if (early > 0) {
                LockSupport.parkNanos(Math.max(early, TICK_NS));
                while (System.nanoTime() < intended) {
                    Thread.onSpinWait();
                }
            }
            sinks.get((int) (n % producers)).send(key(random), value, intended);
        }
    }

    private static byte[] key(SplittableRandom random) {
        byte[] key = new byte[8];
        random.nextBytes(key);
        return key;
    }

    private interface Sending {
        void run() throws Exception;
    }

    private void start(Sending sending) {
        Thread thread = new Thread(() -> {
            try {
                sending.run();
            } catch (Exception failure) {
                if (!stopping) {
                    ledgers.get(0).failed(failure);
                }
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    private long acknowledged() {
        return ledgers.stream().mapToLong(Ledger::acknowledged).sum();
    }

    private long settledInWindow() {
        return ledgers.stream().mapToLong(Ledger::settledInWindow).sum();
    }

    private long errors() {
        return ledgers.stream().mapToLong(Ledger::errors).sum();
    }

    private static void sleepUntil(long moment) throws InterruptedException {
        long left;
        while ((left = moment - System.nanoTime()) > 0) {
            Thread.sleep(left / 1_000_000, (int) (left % 1_000_000));
        }
    }

    private void print(double seconds, long records, long missing, List<Long> perSecond, Histogram latencies) {
        String first = ledgers.stream().map(Ledger::firstError).filter(words -> words != null).findFirst().orElse("");
        System.out.printf(
            "{\"event\":\"result\",\"seconds\":%.6f,\"records\":%d,\"missing\":%d,\"errors\":%d,\"acknowledged\":%d,\"sustained\":%.1f,\"first_error\":\"%s\",\"per_second\":%s,"
                + "\"latency\":%s}%n",
            seconds, records, missing, errors(), acknowledged(), sustained, first.replaceAll("[^ -~]|[\"\\\\]", " "), perSecond, Ledger.json(latencies));
    }
}
