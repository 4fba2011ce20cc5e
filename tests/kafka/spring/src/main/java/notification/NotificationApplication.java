package notification;

import org.springframework.boot.CommandLineRunner;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;

/** Reserves as many rooms as its argument says, and listens until it is ended. */
@SpringBootApplication
public class NotificationApplication {

    public static void main(String[] arguments) {
        SpringApplication.run(NotificationApplication.class, arguments);
    }

    @Bean
    CommandLineRunner reservations(ReservationService service) {
        return arguments -> {
            for (int number = 0; number < Integer.parseInt(arguments[0]); number++) {
                service.reserve("room " + number);
            }
        };
    }
}
