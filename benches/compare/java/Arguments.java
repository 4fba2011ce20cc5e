import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;

/** Arguments of the form name=value. */
final class Arguments {
    private final Map<String, String> values = new TreeMap<>();

    Arguments(String[] words) {
        for (String word : words) {
            int at = word.indexOf('=');
            if (at < 0) {
                throw new IllegalArgumentException("expected name=value, not " + word);
            }
            values.put(word.substring(0, at), word.substring(at + 1));
        }
    }

    String text(String name) {
        String value = values.get(name);
        if (value == null) {
            throw new IllegalArgumentException("the argument " + name + "=... is missing");
        }
        return value;
    }

    int integer(String name) {
        return Integer.parseInt(text(name));
    }

    double number(String name) {
        return Double.parseDouble(text(name));
    }

    /** Settings of a Kafka client: where to connect to, and whatever begins with `kafka.`. */
    Properties kafka() {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", text("bootstrap"));
        values.forEach((name, value) -> {
            if (name.startsWith("kafka.")) {
                settings.put(name.substring("kafka.".length()), value);
            }
        });
        return settings;
    }
}
