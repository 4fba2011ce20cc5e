import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * A consumer that begins at the first record of every partition and reads until it has passed what was the end when it began.
 *
 * Arguments are name=value: bootstrap, topic, partitions; with kafka.NAME=VALUE a setting of the consumer. It names its partitions itself, no
 * group is needed. Standard output gets a line of JSON when it begins, one when it ends, and the result.
 */
public final class CatchUp {
    public static void main(String[] words) {
        Arguments arguments = new Arguments(words);
        List<TopicPartition> partitions = new ArrayList<>();
        for (int partition = 0; partition < arguments.integer("partitions"); partition++) {
            partitions.add(new TopicPartition(arguments.text("topic"), partition));
        }
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(arguments.kafka(), new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(partitions);
            Map<TopicPartition, Long> behind = new HashMap<>(consumer.endOffsets(partitions));
            behind.values().removeIf(end -> end == 0);
            consumer.seekToBeginning(partitions);
            System.out.println("{\"event\":\"begin\"}");
            long started = System.nanoTime();
            long records = 0;
            long bytes = 0;
            while (!behind.isEmpty()) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    records++;
                    bytes += record.value().length;
                }
                behind.entrySet().removeIf(end -> consumer.position(end.getKey()) >= end.getValue());
            }
            double seconds = (System.nanoTime() - started) / 1e9;
            System.out.println("{\"event\":\"end\"}");
            System.out.printf("{\"event\":\"result\",\"seconds\":%.6f,\"records\":%d,\"bytes\":%d}%n", seconds, records, bytes);
        }
    }
}
