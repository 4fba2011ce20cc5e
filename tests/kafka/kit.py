"""Where the programs of the checks are, and how they are run: Corelane's own binary, Python's packages, Apache Kafka's jars.

What is installed lies in `target/interop/`, each beside the text of the file that asked for it, so that a changed file is installed anew.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
INSTALLED = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "interop"
# A program that takes longer hangs, seconds.
PATIENCE = 120


def scratch():
    """Directory of what a check leaves while it runs."""
    directory = INSTALLED / "scratch"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def corelane():
    return os.environ.get("INTEROP_BINARY") or str(INSTALLED.parent / "release" / "corelane")


def run(command, *, input=None, codes=(0,), timeout=PATIENCE, env=None):
    """Runs a program to its end; its standard output as bytes. Another exit code, or more time, is an error that shows what it said."""
    command = [str(word) for word in command]
    if isinstance(input, str):
        input = input.encode()
    try:
        done = subprocess.run(command, input=input if input is not None else b"", capture_output=True, timeout=timeout, env=env)
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{command} takes more than {timeout} s and said {late.stdout!r}, {late.stderr!r}") from None
    if done.returncode not in codes:
        raise AssertionError(f"{command} ended with {done.returncode} and said {done.stdout[-4000:]!r}, {done.stderr[-4000:]!r}")
    return done.stdout


def is_installed(what, wanted):
    """Whether `target/interop/WHAT` was made for this text."""
    mark = INSTALLED / f"{what}.made-for"
    return mark.exists() and mark.read_text() == wanted


def install(what, wanted, make):
    """Has `make` fill the empty directory `target/interop/WHAT`, unless that was done for the same text."""
    directory = INSTALLED / what
    if is_installed(what, wanted):
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    make(directory)
    (INSTALLED / f"{what}.made-for").write_text(wanted)
    return directory


def python_packages():
    """Directory of the packages of requirements.txt for this Python."""
    file = HERE / "requirements.txt"

    def make(directory):
        quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]
        subprocess.run([sys.executable, "-m", "pip", "install", *quiet, "--target", directory, "-r", file], check=True)

    return install("python", f"{sys.version}\n{file.read_text()}", make)


def jars():
    """Directory of Apache Kafka's jars and of all that they need, with the classes of java/*.java beside them."""
    project = HERE / "java"
    file = project / "pom.xml"

    def make(directory):
        maven = ["mvn", "--quiet", "--batch-mode", "--file", file]
        subprocess.run([*maven, "dependency:copy-dependencies", f"-DoutputDirectory={directory}"], check=True)

    return install("jars", file.read_text(), make)


def java(main, *arguments, options=()):
    """The command that runs a class of Apache Kafka's jars or of java/."""
    # One compiler is enough for programs that live for seconds.
    return ["java", "-XX:TieredStopAtLevel=1", *options, "-cp", f"{jars()}/*:{java_classes()}", main, *arguments]


def java_classes():
    """Directory of the compiled classes of java/*.java."""
    sources = sorted((HERE / "java").glob("*.java"))
    text = "\n".join(source.read_text() for source in sources)

    def make(directory):
        if sources:
            subprocess.run(["javac", "-cp", f"{jars()}/*", "-d", directory, *sources], check=True)

    return install("classes", text, make)


def spring_jar():
    """The runnable jar of spring/."""
    project = HERE / "spring"
    sources = sorted(path for path in project.rglob("*") if path.is_file())
    text = "\n".join(path.read_text() for path in sources)

    def make(directory):
        copy = directory / "project"
        shutil.copytree(project, copy)
        subprocess.run(["mvn", "--quiet", "--batch-mode", "--file", copy / "pom.xml", "package"], check=True)

    return next((install("spring", text, make) / "project" / "target").glob("*.jar"))
