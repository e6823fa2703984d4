//! The documents say what the program does: their tables are made from the program's own.
//!
//! To write them anew after a change: `SAMSARA_WRITE_DOCS=1 cargo test -p samsara-tests --test docs`.

use std::fs;
use std::path::PathBuf;

use samsara_config::{Config, KEYS, Role};
use samsarad::exit::{ExitCode, Restart};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Checks, or writes, the part of a document between its two marks.
fn check(document: &str, name: &str, wanted: &str) {
    let path = root().join("docs").join(document);
    let text = fs::read_to_string(&path).expect("the document");
    let begin = text.find(&format!("<!-- {name}:")).expect("its first mark");
    let begin = begin + text[begin..].find("-->\n").expect("the end of it") + "-->\n".len();
    let end = text
        .find(&format!("<!-- end of {name} -->"))
        .expect("its last mark");
    if std::env::var_os("SAMSARA_WRITE_DOCS").is_some() {
        let text = format!("{}{wanted}{}", &text[..begin], &text[end..]);
        fs::write(&path, text).expect("written");
    } else {
        assert!(
            &text[begin..end] == wanted,
            "docs/{document}: its table of {name} is not that of the program"
        );
    }
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn the_keys_of_the_configuration() {
    let mut table = String::from("\n| key | default | takes | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let default = key
            .default
            .map_or_else(|| "unset".to_owned(), |default| format!("`{default}`"));
        let (accepts, meaning) = (cell(key.accepts), cell(key.meaning));
        let line = format!("| `{}` | {default} | {accepts} | {meaning} |\n", key.name);
        table.push_str(&line);
    }
    table.push('\n');
    check("configuration.md", "keys", &table);
}

#[test]
fn the_exit_statuses() {
    let mut table = String::from("\n| status | meaning | restart |\n|---|---|---|\n");
    table.push_str("| 0-255 | the guest's own | no |\n");
    for code in ExitCode::ALL {
        let restart = match code.restart() {
            Restart::Retry => "yes",
            Restart::Stay => "no",
        };
        let line = format!("| {} | {} | {restart} |\n", code.code(), cell(code.about()));
        table.push_str(&line);
    }
    table.push('\n');
    check("exit-codes.md", "statuses", &table);
}

/// The contract's table of registers, against the machine's offsets.
#[test]
fn the_registers_of_the_bare_guest_contract() {
    use samsara_machine::bare::{DEVICE_PAGE, register};
    let text = fs::read_to_string(root().join("docs/bare-guest.md")).expect("the contract");
    let base = format!("0x{:04X}_{:04X}", DEVICE_PAGE >> 16, DEVICE_PAGE & 0xffff);
    assert!(text.contains(&base), "the contract does not say {base}");
    let registers = [
        ("CONSOLE", register::CONSOLE),
        ("EXIT", register::EXIT),
        ("CLOCK", register::CLOCK),
        ("RANDOM", register::RANDOM),
        ("YIELD", register::YIELD),
        ("HALT", register::HALT),
        ("MARK", register::MARK),
        ("INPUT", register::INPUT),
        ("OUTPUT", register::OUTPUT),
    ];
    for (name, offset) in registers {
        let row = format!("| 0x{offset:02x} | {name} |");
        assert!(text.contains(&row), "the contract has no row {row}");
    }
    let rows = text.lines().filter(|line| line.starts_with("| 0x")).count();
    assert_eq!(rows, registers.len());
}

/// The pair that the README sets up has all that both roles need.
#[test]
fn the_configuration_in_the_readme() {
    let text = fs::read_to_string(root().join("README.md")).expect("the README");
    let blocks = text
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let mut count = 0;
    for block in blocks {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("vm.toml");
        let lines = block
            .lines()
            .map(|line| line.trim_start().to_owned() + "\n");
        fs::write(&path, lines.collect::<String>()).expect("written");
        let config = Config::load(Some(&path), &[]).unwrap_or_else(|error| panic!("{error}"));
        for role in [Role::Primary, Role::Backup] {
            config.check(role).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(config.warnings(role), Vec::<String>::new());
        }
        count += 1;
    }
    assert_eq!(count, 1);
}

/// A document that is named somewhere exists.
#[test]
fn the_documents_that_are_named_exist() {
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let mut files: Vec<PathBuf> = docs.map(|entry| entry.expect("entry").path()).collect();
    files.push(root().join("README.md"));
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut missing = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).expect("text");
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let target = file
                .parent()
                .expect("folder")
                .join(link.split('#').next().unwrap_or(link));
            if !target.exists() {
                missing.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
