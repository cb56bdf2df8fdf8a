//! What the program prints for shells and readers: completions and the manual page.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::fixtures::{ends, monitor, stdout};

/// The names of all commands, as the help lists them.
fn commands() -> Vec<String> {
    let help = ends(&["--help"], 0);
    let (_, list) = help.split_once("Commands:").unwrap();
    let lines = list.lines().skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.map(|line| line.split_whitespace().next().unwrap().to_owned());
    names.filter(|name| name != "help").collect()
}

#[test]
fn completions_name_every_command_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ends(&["completions", shell], 0);
        for command in commands() {
            assert!(script.contains(&command), "{shell} completes no {command}");
        }
        assert!(script.contains("keep-replaced"), "{shell}");
    }
    let bash = ends(&["completions", "bash"], 0);
    let mut checked = Command::new("bash")
        .args(["-n", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    checked
        .stdin
        .take()
        .unwrap()
        .write_all(bash.as_bytes())
        .unwrap();
    assert!(checked.wait().unwrap().success());
    assert!(ends(&["completions", "tcsh"], 2).contains("possible values: bash"));
}

#[test]
fn the_manual_page_has_every_command_and_no_secret() {
    let output = monitor(&["man"])
        .env("POSTGRES_URL", "postgres://app:hunter2-secret@h/d")
        .output()
        .unwrap();
    let page = stdout(&output);
    assert!(page.contains(".TH heartbeat"), "{page}");
    for command in commands() {
        let section = format!("COMMAND {}", command.to_uppercase());
        assert!(page.contains(&section), "no section {section}");
    }
    for word in ["Exit status", "\\-\\-keep\\-replaced", "POSTGRES_URL"] {
        assert!(page.contains(word), "{word} is not in {page}");
    }
    assert!(!page.contains("hunter2"), "{page}");
}

/// A reader looks for a command here.
#[test]
fn the_guide_has_every_command_and_every_option_of_it() {
    let guide = include_str!("../../docs/guide/monitor.md");
    for command in commands() {
        assert!(
            guide.contains(&format!("| `{command}` |")),
            "{command} is not in the guide"
        );
        let help = ends(&[&command, "--help"], 0);
        let words = help.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '-'));
        for option in words.filter(|word| word.starts_with("--") && word.len() > 2) {
            let is_general = ["--help", "--version"].contains(&option);
            assert!(
                is_general || guide.contains(option),
                "{option} of {command}"
            );
        }
    }
}
