package notification;

import org.springframework.kafka.annotation.KafkaListener;
import org.springframework.stereotype.Service;

/** Notifies a guest of each reservation. */
@Service
public class NotificationListener {

    @KafkaListener(topics = "reservation-topic", groupId = "notification-service")
    public void listen(String reservation) {
        System.out.println("notified of " + reservation);
    }
}
