import java.util.concurrent.atomic.AtomicLong;
import org.HdrHistogram.ConcurrentHistogram;
import org.HdrHistogram.Histogram;

/** What has become of one client's records. */
final class Ledger {
    private final AtomicLong acknowledged = new AtomicLong();
    private final AtomicLong inWindow = new AtomicLong();
    private final AtomicLong errors = new AtomicLong();
    private final Histogram latencies = new ConcurrentHistogram(3);
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
        if (intendedNs >= begin && intendedNs < end) {
            latencies.recordValue(Math.max(1, System.nanoTime() - intendedNs));
            inWindow.incrementAndGet();
        }
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
        return inWindow.get();
    }

    long errors() {
        return errors.get();
    }

    String firstError() {
        return firstError;
    }

    void addTo(Histogram all) {
        all.add(latencies);
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
