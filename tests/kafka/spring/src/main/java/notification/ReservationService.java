package notification;

import org.springframework.kafka.core.KafkaTemplate;
import org.springframework.stereotype.Service;

/** Tells the rest of the house that a room was reserved. */
@Service
public class ReservationService {

    private final KafkaTemplate<String, String> kafkaTemplate;

    public ReservationService(KafkaTemplate<String, String> kafkaTemplate) {
        this.kafkaTemplate = kafkaTemplate;
    }

    public void reserve(String reservation) {
        kafkaTemplate.send("reservation-topic", reservation);
    }
}
