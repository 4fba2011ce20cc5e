import io.nats.client.Connection;
import io.nats.client.JetStream;
import io.nats.client.Nats;
import io.nats.client.Options;
import io.nats.client.api.StorageType;
import io.nats.client.api.StreamConfiguration;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.Semaphore;

/** A connection to NATS JetStream: one stream in files, a subject for each partition, acknowledged publishing with a bound of what is in flight. */
final class NatsSink implements Load.Sink {
    /** As many as its own benchmark has in flight by default. */
    private static final int IN_FLIGHT = 500;

    private final JetStream stream;
    private final String[] subjects;
    private final Ledger ledger;
    private final Semaphore room = new Semaphore(IN_FLIGHT);

    NatsSink(Arguments arguments, Ledger ledger, boolean first) throws Exception {
        Options.Builder options = new Options.Builder().server("nats://" + arguments.text("bootstrap"));
        // A server that syncs each message takes longer for all that is in flight than the five seconds for which a client waits by default.
        Connection connection = Nats.connect(options.requestCleanupInterval(Duration.ofMinutes(2)).build());
        String topic = arguments.text("topic");
        if (first) {
            connection.jetStreamManagement()
                .addStream(StreamConfiguration.builder().name(topic).subjects(topic + ".*").storageType(StorageType.File).build());
        }
        stream = connection.jetStream();
        subjects = new String[arguments.integer("partitions")];
        Arrays.setAll(subjects, partition -> topic + "." + partition);
        this.ledger = ledger;
    }

    @Override
    public void send(byte[] key, byte[] value, long intendedNs) throws Exception {
        room.acquire();
        String subject = subjects[(Arrays.hashCode(key) & 0x7fffffff) % subjects.length];
        stream.publishAsync(subject, value).whenComplete((acknowledgement, failure) -> {
            room.release();
            if (failure == null) {
                ledger.acknowledged(intendedNs);
            } else {
                ledger.failed(failure);
            }
        });
    }
}
