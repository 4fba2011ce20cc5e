import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;

import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;

/** What chaos_member.py is, with Java's client: BOOTSTRAP GROUP TOPIC STRATEGY LIST. */
public class ChaosMember implements ConsumerRebalanceListener {

    private static final Map<String, String> ASSIGNORS = Map.of(
        "range", "org.apache.kafka.clients.consumer.RangeAssignor",
        "roundrobin", "org.apache.kafka.clients.consumer.RoundRobinAssignor",
        "cooperative-sticky", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor");

    private final KafkaConsumer<byte[], byte[]> consumer;
    private final FileChannel list;
    private final Map<TopicPartition, OffsetAndMetadata> handled = new HashMap<>();
    private int generation = -1;

    public static void main(String[] words) throws Exception {
        new ChaosMember(words).work();
    }

    private ChaosMember(String[] words) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", words[0]);
        settings.put("group.id", words[1]);
        settings.put("partition.assignment.strategy", ASSIGNORS.get(words[3]));
        settings.put("enable.auto.commit", "false");
        settings.put("auto.offset.reset", "earliest");
        settings.put("session.timeout.ms", "6000");
        settings.put("heartbeat.interval.ms", "500");
        settings.put("max.poll.records", "200");
        settings.put("key.deserializer", "org.apache.kafka.common.serialization.ByteArrayDeserializer");
        settings.put("value.deserializer", "org.apache.kafka.common.serialization.ByteArrayDeserializer");
        list = FileChannel.open(Path.of(words[4]), StandardOpenOption.CREATE, StandardOpenOption.WRITE, StandardOpenOption.APPEND);
        consumer = new KafkaConsumer<>(settings);
        consumer.subscribe(List.of(words[2]), this);
    }

    private void work() throws Exception {
        Thread main = Thread.currentThread();
        var isOver = new java.util.concurrent.atomic.AtomicBoolean();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            isOver.set(true);
            try {
                main.join();
            } catch (InterruptedException ignored) {
                // The process ends anyway.
            }
        }));
        while (!isOver.get()) {
            for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                add("H", record.partition(), record.offset());
                handled.put(new TopicPartition(record.topic(), record.partition()), new OffsetAndMetadata(record.offset() + 1));
            }
            commit();
        }
        commit();
        consumer.close();
    }

    private void commit() {
        if (handled.isEmpty()) {
            return;
        }
        Map<TopicPartition, OffsetAndMetadata> positions = Map.copyOf(handled);
        try {
            consumer.commitSync(positions);
            handled.clear();
            positions.forEach((partition, position) -> add("C", partition.partition(), position.offset()));
        } catch (KafkaException refused) {
            // It is tried again: members are refused while others join.
            say("commit: " + refused);
        }
    }

    @Override
    public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
        commit();
        handled.keySet().removeAll(partitions);
        say("revoked " + partitions);
    }

    @Override
    public void onPartitionsLost(Collection<TopicPartition> partitions) {
        handled.clear();
        say("lost " + partitions);
    }

    @Override
    public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
        generation = consumer.groupMetadata().generationId();
        say("generation " + generation + ": " + partitions);
    }

    private void add(String kind, int partition, long offset) {
        write(kind + " " + generation + " " + partition + " " + offset + "\n");
    }

    private void say(String words) {
        write("# " + words.replace("\n", " ") + "\n");
    }

    private void write(String line) {
        try {
            list.write(ByteBuffer.wrap(line.getBytes(StandardCharsets.UTF_8)));
        } catch (java.io.IOException failed) {
            throw new java.io.UncheckedIOException(failed);
        }
    }
}
