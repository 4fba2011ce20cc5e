//! The `corelane` command.

fn main() -> std::process::ExitCode {
    abort_on_panic();
    corelane::cli::main()
}

/// A panic is our own mistake, and a shard that goes on after one would answer from a state nobody checked: say it, stop
/// the process, let recovery decide. (A profile with `panic = "abort"` would do the same, but compile everything twice.)
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}
