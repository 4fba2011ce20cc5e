import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;

import org.apache.kafka.common.utils.internals.Exit;

/**
 * Runs Kafka's command line tools one after another in one JVM, as the start of a JVM takes longer than most of them.
 *
 * A line of standard input asks for one: words in Base64, separated by spaces: what the tool reads as its standard input, its class, its
 * arguments. A line of standard output answers: exit code, standard output and standard error in Base64; "-" stands for nothing.
 */
public class Tools {

    /** In place of the end of the process. Tools may catch it and say more, which a process that has ended would not. */
    private static class Ended extends RuntimeException {
    }

    private static final ByteArrayOutputStream output = new ByteArrayOutputStream();
    private static final ByteArrayOutputStream errors = new ByteArrayOutputStream();
    /** What is run at the end: tools close there what they have open. */
    private static final List<Runnable> hooks = new ArrayList<>();
    /** The answer at the first end. */
    private static String ended;

    public static void main(String[] arguments) throws Exception {
        PrintStream answers = System.out;
        Exit.setExitProcedure(Tools::end);
        Exit.setHaltProcedure(Tools::end);
        Exit.setShutdownHookAdder((name, hook) -> hooks.add(hook));
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in));
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            String[] words = Arrays.stream(line.split(" ")).map(Tools::decoded).toArray(String[]::new);
            output.reset();
            errors.reset();
            ended = null;
            System.setIn(new ByteArrayInputStream(words[0].getBytes(StandardCharsets.UTF_8)));
            System.setOut(new PrintStream(output, true, StandardCharsets.UTF_8));
            System.setErr(new PrintStream(errors, true, StandardCharsets.UTF_8));
            int code = run(words[1], Arrays.copyOfRange(words, 2, words.length));
            hooks.forEach(Runnable::run);
            hooks.clear();
            answers.println(ended != null ? ended : answer(code));
        }
    }

    private static void end(int code, String message) {
        if (ended == null) {
            ended = answer(code);
        }
        throw new Ended();
    }

    private static String answer(int code) {
        return code + " " + encoded(output) + " " + encoded(errors);
    }

    private static int run(String tool, String[] arguments) {
        try {
            Class.forName(tool).getMethod("main", String[].class).invoke(null, (Object) arguments);
            return 0;
        } catch (java.lang.reflect.InvocationTargetException thrown) {
            // What the JVM does with an exception that leaves main.
            thrown.getCause().printStackTrace();
            return 1;
        } catch (ReflectiveOperationException missing) {
            throw new IllegalStateException(missing);
        }
    }

    private static String decoded(String word) {
        return word.equals("-") ? "" : new String(Base64.getDecoder().decode(word), StandardCharsets.UTF_8);
    }

    private static String encoded(ByteArrayOutputStream bytes) {
        return bytes.size() == 0 ? "-" : Base64.getEncoder().encodeToString(bytes.toByteArray());
    }
}
