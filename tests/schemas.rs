//! The committed code is what flatc makes of the schemas.

use std::path::Path;
use std::process::Command;

/// Each schema that code is made of, and the directory of that code.
const SCHEMAS: [(&str, &str); 3] =
    [("native", "src/wire/generated"), ("catalogue", "src/cluster/generated"), ("replication", "src/replication/generated")];

#[test]
#[ignore = "needs flatc 25.12.19, named by the variable FLATC"]
fn generated_code_is_the_schemas_code() {
    let flatc = std::env::var_os("FLATC").expect("FLATC names the flatc binary");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (schema, directory) in SCHEMAS {
        let made = tempfile::tempdir().unwrap();
        let run = Command::new(&flatc)
            .args(["--rust", "--gen-all", "-o"])
            .arg(made.path())
            .arg(format!("schemas/{schema}.fbs"))
            .current_dir(root)
            .output()
            .expect("flatc runs");
        assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        let name = format!("{schema}_generated.rs");
        let expected = std::fs::read_to_string(made.path().join(&name)).unwrap();
        let actual = std::fs::read_to_string(root.join(directory).join(&name)).unwrap();
        let differs = expected.lines().zip(actual.lines()).position(|(e, a)| e != a);
        assert!(expected == actual, "{directory}/{name} differs from the schemas' code at line {differs:?}: see schemas/README.md");
    }
}
