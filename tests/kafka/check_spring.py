"""A Spring Boot program with the two classes that a Spring user writes: what it sends, its listener gets."""

import os
import re
import signal
import subprocess
import time

import brokers
import kit
from brokers import PATIENCE

RESERVATIONS = 500


class Spring(brokers.Case):
    def test_the_listener_gets_every_reservation(self):
        self.assertEqual(self.reserve(RESERVATIONS), [f"room {n}" for n in range(RESERVATIONS)])
        # A second run of the program goes on where the first stopped.
        self.assertEqual(self.reserve(3), ["room 0", "room 1", "room 2"])

    def reserve(self, count):
        """Runs the program until it was notified of so many reservations, and ends it as systems do, with SIGTERM; what it was notified of."""
        log = self.broker.directory / f"spring-{count}.log"
        command = ["java", "-XX:TieredStopAtLevel=1", "-jar", kit.spring_jar(), str(count)]
        # The address is all that is changed, from outside.
        environment = {**os.environ, "SPRING_KAFKA_BOOTSTRAP_SERVERS": self.broker.bootstrap}
        with open(log, "wb") as output:
            program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            begun = time.monotonic()
            while len(self.notified(log)) < count:
                self.assertIsNone(program.poll(), log.read_text())
                self.assertLess(time.monotonic() - begun, PATIENCE, log.read_text()[-4000:])
                time.sleep(0.1)
            program.send_signal(signal.SIGTERM)
            # Spring closes its context on SIGTERM: the listener commits and leaves the group. 143 is the JVM's word for that signal.
            self.assertEqual(program.wait(PATIENCE), 143)
        finally:
            program.kill()
            program.wait()
        self.assertNotRegex(log.read_text(), "(?m)^.* (ERROR|Exception)")
        return self.notified(log)

    def notified(self, log):
        return re.findall(r"^notified of (.*)$", log.read_text(errors="replace"), re.MULTILINE)
