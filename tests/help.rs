//! The help of each verb can be used as it is printed.

use std::process::{Command, Output};

fn ratoon(columns: &str, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    // No interpreter, no model: an example ends at its first file.
    command.current_dir(dir.path()).env("COLUMNS", columns).env("PYTHON", "/nonexistent").args(args);
    command.env("RATOON_CACHE", dir.path().join("cache")).output().unwrap()
}

fn help(columns: &str, verb: &str) -> String {
    String::from_utf8(ratoon(columns, &[verb, "--help"]).stdout).unwrap()
}

/// Example lines without the program's name.
fn examples(help: &str) -> Vec<&str> {
    help.lines().filter_map(|line| line.strip_prefix("  ratoon ")).collect()
}

fn verbs() -> Vec<String> {
    let all = String::from_utf8(ratoon("80", &["--help"]).stdout).unwrap();
    let commands = all.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let verbs: Vec<String> = names.map(|line| line.split_whitespace().next().unwrap().to_string()).collect();
    assert_eq!(verbs.len(), 16, "{verbs:?}");
    verbs.into_iter().filter(|verb| verb != "help").collect()
}

#[test]
fn every_example_is_a_whole_line_that_the_program_takes() {
    for verb in verbs() {
        let (narrow, wide) = (help("80", &verb), help("300", &verb));
        let found = examples(&narrow);
        assert!(!found.is_empty(), "{verb} has an example: {narrow}");
        assert_eq!(found, examples(&wide), "no terminal breaks an example");
        for example in found {
            // Words in quotes are one argument.
            let parts = example.split(['\'', '"']).enumerate().flat_map(|(i, part)| match i % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
            // The example of `init` would write gigabytes.
            let words = parts.map(|word| if word == "llama-3.2-1b" { "tiny" } else { word });
            let out = ratoon("80", &words.collect::<Vec<&str>>());
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(!said.contains("Usage:") && !said.contains("unexpected"), "{example}: {said}");
        }
    }
}

#[test]
fn help_is_written_for_people() {
    for verb in verbs() {
        let help = help("80", &verb);
        assert!(!help.contains("[`") && !help.contains("`]") && !help.contains("]("), "{verb}: {help}");
    }
}
