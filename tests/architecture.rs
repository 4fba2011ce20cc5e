//! Holds the house rules: layers, purity, the client's independence, the top level, file lengths, words that have no place.
//!
//! Source is read as Rust tokens, so comments and strings never count, and neither do `#[cfg(test)]` items. Each rule has
//! a planted violation among the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The layers, top first: a module uses modules of its own layer or of those above it, never in a circle.
const LAYERS: &[&[&str]] = &[
    &["types", "limits", "checksum", "metrics"],
    &["batch", "request", "wire", "kafka"],
    &["log", "replication", "partition", "group", "cluster"],
    &["shard", "control", "client", "bridge"],
    &["server", "cli", "main"],
];

/// Modules without clock, file, socket, thread or randomness.
const PURE: &[&str] =
    &["types", "limits", "checksum", "batch", "request", "wire", "kafka", "log", "replication", "partition", "group", "cluster"];

/// Pairs that the layers allow and that must not be all the same: the planes meet in `bridge` only, the client stands alone.
const APART: &[(&str, &[&str])] = &[
    ("client", &["shard", "control", "bridge", "server", "cli"]),
    ("shard", &["control", "client"]),
    ("control", &["shard", "client"]),
    ("server", &["cli"]),
];

/// What a pure module must not name.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::os",
    "std::thread",
    "std::process",
    "std::env",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::collections::hash_map::RandomState",
    "std::hash::RandomState",
    "tokio",
    "glommio",
    "socket2",
    "libc",
    "rand",
    "getrandom",
    "core_affinity",
    "async_channel",
    "uuid::Uuid::new_v4",
    "Uuid::new_v4",
    "tempfile",
];

/// Modules that hand out a clock if imported whole.
const WHOLE: &[&str] = &["std::time", "std"];

/// Macros that a pure module must not call.
const IMPURE_MACROS: &[&str] = &["println", "eprintln", "print", "eprint", "dbg", "thread_local"];

/// Everything that may stand at the top level, dot-files aside.
const TOP_LEVEL: &[&str] = &["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "src", "schemas", "benches", "tests", "tuning"];

/// Made by running the product, ignored by git.
const NOT_OURS: &[&str] = &["target", "corelane-data", "proptest-regressions", ".git", "corpus", "artifacts"];

/// A longer file has two ideas.
const MAX_LINES: usize = 800;

/// One path as written: `use a::{b, c::d}` is two.
#[derive(Debug)]
struct Mention {
    path: Vec<String>,
    line: usize,
    /// Called with `!`.
    is_macro: bool,
    /// Of one word and not behind `use`: a local name, a method, a field.
    is_local: bool,
}

/// One source file: the module path below `src/`, and what it names.
struct Source {
    file: String,
    /// Of `src/log/index.rs`: log, index.
    module: Vec<String>,
    mentions: Vec<Mention>,
}

impl Source {
    fn parse(file: &str, text: &str) -> Source {
        let inner = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
        let mut module: Vec<String> = inner.split('/').map(String::from).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{file} is not Rust: {e}"));
        let mut mentions = Vec::new();
        collect(tokens, &mut module.clone(), &mut mentions);
        Source { file: file.into(), module, mentions }
    }

    fn top(&self) -> &str {
        &self.module[0]
    }
}

/// Walks tokens, skips `#[cfg(test)]` items, gathers every path with `crate`, `self` and `super` resolved against `module`.
fn collect(tokens: TokenStream, module: &mut Vec<String>, mentions: &mut Vec<Mention>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens[at..]) {
            at = end_of_item(&tokens, at + 2);
            continue;
        }
        match &tokens[at] {
            TokenTree::Ident(word) if *word == "mod" && matches!(tokens.get(at + 2), Some(TokenTree::Group(_))) => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) = (tokens.get(at + 1), tokens.get(at + 2)) {
                    module.push(name.to_string());
                    collect(body.stream(), module, mentions);
                    module.pop();
                }
                at += 3;
            }
            TokenTree::Ident(_) => at = path(&tokens, at, &[], module, mentions),
            TokenTree::Group(group) => {
                collect(group.stream(), module, mentions);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Reads the path that begins at `at`; returns where it ends.
fn path(tokens: &[TokenTree], mut at: usize, prefix: &[String], module: &mut Vec<String>, mentions: &mut Vec<Mention>) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[at].span().start().line;
    let is_used = at > 0 && matches!(&tokens[at - 1], TokenTree::Ident(word) if *word == "use");
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(word)) => path.push(word.to_string()),
            Some(TokenTree::Punct(star)) if star.as_char() == '*' => path.push("*".into()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                use_tree(group.stream(), &path, module, mentions);
                return at + 1;
            }
            // `::<T>` and the like end what interests us.
            _ => break,
        }
        at += 1;
        if !is_path_separator(&tokens[at.min(tokens.len())..]) {
            break;
        }
        at += 2;
    }
    let is_macro = matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == '!');
    let is_local = path.len() == 1 && !is_used;
    mentions.push(Mention { path: resolve(path, module), line, is_macro, is_local });
    at
}

/// The braces of `use a::{b, c::{d, e}, self}`.
fn use_tree(tokens: TokenStream, prefix: &[String], module: &mut Vec<String>, mentions: &mut Vec<Mention>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        at = match &tokens[at] {
            TokenTree::Punct(p) if p.as_char() == ',' => at + 1,
            _ => path(&tokens, at, prefix, module, mentions).max(at + 1),
        };
    }
}

fn is_path_separator(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(a), TokenTree::Punct(b), ..] if a.as_char() == ':' && b.as_char() == ':')
}

/// `corelane::` and `crate::` are the same root; a trailing `self` is the module itself.
fn resolve(mut path: Vec<String>, module: &[String]) -> Vec<String> {
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    match path[0].as_str() {
        "corelane" if path.len() > 1 => path[0] = "crate".into(),
        "self" if path.len() > 1 => path = [&["crate".to_string()], module, &path[1..]].concat(),
        "super" => {
            let ups = path.iter().take_while(|word| *word == "super").count();
            let kept = module.len().saturating_sub(ups);
            path = [&["crate".to_string()], &module[..kept], &path[ups..]].concat();
        }
        _ => {}
    }
    path
}

fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(hash), TokenTree::Group(body), ..]
        if hash.as_char() == '#' && body.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// Behind the item that begins at `at`: its braces or its semicolon.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
            TokenTree::Punct(p) if p.as_char() == ';' => break,
            _ => {}
        }
    }
    at
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Imports that point down, modules without a layer, pairs that must stay apart, circles.
fn layer_violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources.iter().filter(|s| !matches!(s.top(), "lib" | "docs")) {
        let Some(own) = layer(source.top()) else {
            found.push(format!("{}: the module {} has no layer", source.file, source.top()));
            continue;
        };
        for mention in source.mentions.iter().filter(|m| m.path[0] == "crate" && m.path.len() > 1) {
            let target = mention.path[1].as_str();
            // `crate::Word` and macros of the crate are no modules.
            let Some(other) = layer(target) else { continue };
            if target == source.top() {
                continue;
            }
            let apart = APART.iter().any(|(module, never)| *module == source.top() && never.contains(&target));
            if other > own || apart {
                found.push(format!("{}:{}: {} must not use {target}", source.file, mention.line, source.top()));
            }
            edges.entry(source.top()).or_default().insert(target);
        }
    }
    for module in edges.keys() {
        if reaches(&edges, module, module) {
            found.push(format!("{module} uses itself in a circle"));
        }
    }
    found
}

fn reaches(edges: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<&str> = edges.get(from).into_iter().flatten().copied().collect();
    while let Some(module) = waiting.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            waiting.extend(edges.get(module).into_iter().flatten());
        }
    }
    false
}

/// Clocks, files, sockets, threads and randomness in pure modules.
fn purity_violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| PURE.contains(&s.top())) {
        for mention in &source.mentions {
            let path = mention.path.join("::");
            let whole = path.strip_suffix("::*").unwrap_or(&path);
            let impure = IMPURE.iter().any(|bad| path == *bad || path.strip_prefix(bad).is_some_and(|rest| rest.starts_with("::")));
            let hidden = mention.path.len() > 1 && WHOLE.contains(&whole);
            let called = mention.is_macro && IMPURE_MACROS.contains(&path.as_str());
            if (impure && !mention.is_local) || hidden || called {
                found.push(format!("{}:{}: a pure module names {path}", source.file, mention.line));
            }
        }
    }
    found
}

/// What stands at the top level and has no place there.
fn top_level_violations(names: &[String]) -> Vec<String> {
    let allowed = |name: &String| name.starts_with('.') || TOP_LEVEL.contains(&name.as_str()) || NOT_OURS.contains(&name.as_str());
    names.iter().filter(|name| !allowed(name)).map(|name| format!("{name} has no place at the top level")).collect()
}

/// Files of more than one idea.
fn length_violations(files: &[(String, String)]) -> Vec<String> {
    let ours = files.iter().filter(|(file, _)| file.ends_with(".rs") && !file.contains("/generated/"));
    ours.map(|(file, text)| (file, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(file, lines)| format!("{file} has {lines} lines, at most {MAX_LINES}"))
        .collect()
}

/// Places outside the repository: a clone does not have them.
fn outside_violations(files: &[(String, String)]) -> Vec<String> {
    let outside = [concat!("..", "/shared").to_string(), concat!("/", "work").to_string()];
    let mut found = Vec::new();
    for (file, text) in files {
        for (number, line) in text.lines().enumerate() {
            if let Some(place) = outside.iter().find(|place| names_place(line, place)) {
                found.push(format!("{file}:{}: names {place}", number + 1));
            }
        }
    }
    found
}

/// `place` as a directory of its own: not `/workspace`, not `net/work`.
fn names_place(line: &str, place: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + place.len()..].chars().next();
        !before.is_some_and(word) && !after.is_some_and(word)
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of the repository with its path from the root.
fn repository() -> Vec<(String, String)> {
    let mut files = Vec::new();
    walk(root(), &mut files);
    files
}

fn walk(directory: &Path, files: &mut Vec<(String, String)>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory).expect("readable").map(|entry| entry.expect("readable").path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if NOT_OURS.contains(&name) {
            continue;
        }
        if path.is_dir() {
            walk(&path, files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let inner = path.strip_prefix(root()).expect("below the root");
            files.push((inner.to_string_lossy().into_owned(), text));
        }
    }
}

fn sources() -> Vec<Source> {
    let files = repository();
    let rust = files.iter().filter(|(file, _)| file.starts_with("src/") && file.ends_with(".rs") && !file.contains("/generated/"));
    rust.map(|(file, text)| Source::parse(file, text)).collect()
}

#[track_caller]
fn none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[track_caller]
fn one(violations: Vec<String>, words: &str) {
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains(words), "{violations:?} does not say {words:?}");
}

#[test]
fn imports_point_up_the_layers() {
    none(layer_violations(&sources()));
}

#[test]
fn pure_modules_are_pure() {
    none(purity_violations(&sources()));
}

#[test]
fn top_level_is_as_listed() {
    let names: Vec<String> =
        fs::read_dir(root()).expect("readable").map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    none(top_level_violations(&names));
}

#[test]
fn files_have_one_idea() {
    none(length_violations(&repository()));
}

#[test]
fn nothing_outside_the_repository_is_named() {
    none(outside_violations(&repository()));
}

#[test]
fn a_planted_import_that_points_down_is_caught() {
    let planted = |file: &str, text: &str| layer_violations(&[Source::parse(file, text)]);
    one(planted("src/log/index.rs", "use crate::{types::Offset, shard::Disk};"), "src/log/index.rs:1: log must not use shard");
    one(
        planted("src/batch/view.rs", "fn f() { g(crate::wire::decode) }\nuse super::super::log::Log;"),
        "view.rs:2: batch must not use log",
    );
    one(planted("src/log.rs", "mod inner { use super::super::cli::Exit; }"), "log must not use cli");
    one(planted("src/client/mod.rs", "macro_rules! m { () => { crate::shard::run() } }"), "client must not use shard");
    one(planted("src/shard/mod.rs", "use crate::control;"), "shard must not use control");
    one(planted("src/tools.rs", ""), "the module tools has no layer");
    none(planted("src/log/index.rs", "// use crate::shard::X;\nconst A: &str = \"crate::shard\";\nuse crate::types::{Offset, TopicId};"));
    none(planted("src/log/index.rs", "#[cfg(test)]\nmod tests { use crate::shard::X; }\nuse super::Log;"));
}

#[test]
fn a_planted_circle_is_caught() {
    let sources = [Source::parse("src/batch.rs", "use crate::wire::A;"), Source::parse("src/wire.rs", "use crate::batch::B;")];
    let found = layer_violations(&sources);
    assert_eq!(found, ["batch uses itself in a circle", "wire uses itself in a circle"]);
}

#[test]
fn a_planted_impurity_is_caught() {
    let planted = |text: &str| purity_violations(&[Source::parse("src/log/index.rs", text)]);
    one(planted("use std::time::{Duration, Instant};"), "names std::time::Instant");
    one(planted("use std::{fs, mem};"), "names std::fs");
    one(planted("use std::time;"), "names std::time");
    one(planted("use std::time::*;"), "names std::time::*");
    one(planted("fn f() { let id = uuid::Uuid::new_v4(); }"), "new_v4");
    one(planted("fn f() { assert!(tokio::spawn(x)) }"), "tokio::spawn");
    one(planted("use libc as c;"), "names libc");
    one(planted("fn f() {\n println!(\"x\") }"), "index.rs:2: a pure module names println");
    none(planted("use std::time::Duration; use std::io::Read; fn f(rand: u8) { x.rand(); }"));
    none(purity_violations(&[Source::parse("src/shard/disk.rs", "use std::fs::File;")]));
}

#[test]
fn a_planted_top_level_file_is_caught() {
    let names = ["Cargo.toml", ".ci", "target", "NOTES.md"].map(String::from);
    one(top_level_violations(&names), "NOTES.md");
}

#[test]
fn a_planted_long_file_is_caught() {
    let long = "x\n".repeat(MAX_LINES + 1);
    let files = ["src/log.rs", "src/wire/generated/request.rs", "src/docs/long.md"].map(|file| (file.to_string(), long.clone()));
    one(length_violations(&files), "src/log.rs has 801 lines");
}

#[test]
fn a_planted_place_outside_is_caught() {
    let text = [concat!("see /", "work/x"), "the network/workers, /workspace"].join("\n");
    one(outside_violations(&[("README.md".into(), text)]), "README.md:1");
    one(outside_violations(&[("README.md".into(), concat!("`..", "/shared`").into())]), "README.md:1");
}
