//! The `corelane` command.

fn main() -> std::process::ExitCode {
    corelane::cli::main()
}
