//! The committed code of the native protocol is what flatc makes of the schemas.

use std::path::Path;
use std::process::Command;

#[test]
#[ignore = "needs flatc 25.12.19, named by the variable FLATC"]
fn generated_code_is_the_schemas_code() {
    let flatc = std::env::var_os("FLATC").expect("FLATC names the flatc binary");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = tempfile::tempdir().unwrap();
    let run = Command::new(flatc)
        .args(["--rust", "--gen-all", "-o"])
        .arg(made.path())
        .arg("schemas/native.fbs")
        .current_dir(root)
        .output()
        .expect("flatc runs");
    assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let name = "native_generated.rs";
    let expected = std::fs::read_to_string(made.path().join(name)).unwrap();
    let actual = std::fs::read_to_string(root.join("src/wire/generated").join(name)).unwrap();
    let differs = expected.lines().zip(actual.lines()).position(|(e, a)| e != a);
    assert!(expected == actual, "src/wire/generated/{name} differs from the schemas' code at line {differs:?}: see schemas/README.md");
}
