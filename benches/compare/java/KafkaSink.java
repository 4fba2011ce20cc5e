import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** A Kafka producer with its defaults: idempotent, all acknowledgements, 16 KiB batches, a linger of 5 ms. */
final class KafkaSink implements Load.Sink {
    private final Producer<byte[], byte[]> producer;
    private final String topic;
    private final Ledger ledger;

    KafkaSink(Arguments arguments, Ledger ledger) {
        producer = new KafkaProducer<>(arguments.kafka(), new ByteArraySerializer(), new ByteArraySerializer());
        topic = arguments.text("topic");
        this.ledger = ledger;
    }

    @Override
    public void send(byte[] key, byte[] value, long intendedNs) {
        producer.send(new ProducerRecord<>(topic, key, value), (metadata, failure) -> {
            if (failure == null) {
                ledger.acknowledged(intendedNs);
            } else {
                ledger.failed(failure);
            }
        });
    }
}
