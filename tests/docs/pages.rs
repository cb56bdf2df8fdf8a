//! The README and the guide: what they show is run as it is shown, and prints what they say.

use std::fs;
use std::path::{Path, PathBuf};

use worker_heartbeat::State;

use crate::support::examples::run;

/// The programs of the README, in its order. Each is an example without its first comment.
const PROGRAMS: [&str; 3] = [
    "14_supervised_main",
    "15_supervised_future",
    "13_two_minutes",
];

/// A block of code in a document.
#[derive(Debug)]
struct Block {
    language: String,
    text: String,
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut is_open = false;
    for line in document.lines() {
        if let Some(language) = line.strip_prefix("```") {
            if !is_open {
                blocks.push(Block {
                    language: language.to_owned(),
                    text: String::new(),
                });
            }
            is_open = !is_open;
        } else if is_open {
            let block = blocks.last_mut().unwrap();
            block.text += line;
            block.text += "\n";
        }
    }
    assert!(!is_open, "a block has no end");
    blocks
}

/// The comment that begins an example, and its program.
fn example(name: &str) -> (String, String) {
    let source = read(&format!("examples/{name}.rs"));
    let (comment, program) = source.split_once("\n\n").unwrap();
    assert!(comment.lines().all(|line| line.starts_with("//!")));
    (format!("{comment}\n\n"), program.to_owned())
}

/// The text without the parts that differ from run to run: ages, the number of a run, large
/// numbers, and the place in the kernel where a thread waits.
fn lasting(text: &str) -> String {
    let mut lasting = String::new();
    for line in text.lines() {
        let mut line = line.to_owned();
        for (before, after) in [
            ("no progress for ", ", "),
            // With the feature `stacks` comes where it hangs, too.
            ("blocked in ", ", last seen"),
            ("during run-", " "),
        ] {
            line = without(&line, before, after);
        }
        if let Some((start, rest)) = line.split_once(" ago") {
            let (start, _age) = start.rsplit_once(", ").unwrap();
            line = format!("{start}, … ago{rest}");
        }
        let mut digits = String::new();
        for character in line.chars().chain(['\n']) {
            if character.is_ascii_digit() {
                digits.push(character);
            } else {
                lasting += if digits.len() < 6 { &digits } else { "#" };
                digits.clear();
                lasting.push(character);
            }
        }
    }
    lasting
}

/// The line without the text between these two.
fn without(line: &str, before: &str, after: &str) -> String {
    let Some((start, rest)) = line.split_once(before) else {
        return line.to_owned();
    };
    let (_, end) = rest.split_once(after).unwrap();
    format!("{start}{before}…{after}{end}")
}

#[test]
fn the_readme_is_short_and_its_programs_are_examples_as_they_stand() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 180);
    let programs = blocks(&readme)
        .into_iter()
        .filter(|block| block.language.starts_with("rust"));
    let programs: Vec<_> = programs
        .map(|block| {
            assert_eq!(block.language, "rust");
            block.text
        })
        .collect();
    let examples = PROGRAMS.map(|name| example(name).1);
    assert_eq!(programs, examples);
}

#[test]
fn no_page_hides_a_line_of_its_code() {
    let mut programs = 0;
    for page in pages() {
        for block in blocks(&read(&page)) {
            if block.language.starts_with("rust") {
                // The tests of the documentation run these, without exception.
                assert_eq!(block.language, "rust", "{page}");
                let hidden = |line: &str| line.trim() == "#" || line.trim().starts_with("# ");
                assert!(!block.text.lines().any(hidden), "{page}: {}", block.text);
                programs += 1;
            }
        }
    }
    assert!(programs >= 15, "{programs}");
}

/// The README, and all pages that the documentation has as modules.
fn pages() -> Vec<String> {
    let modules = read("src/guide/mod.rs");
    let files = modules
        .split("include_str!(\"../../")
        .chain(modules.split(": \"../../"));
    let files = files.filter_map(|rest| rest.split_once('"'));
    let mut pages: Vec<_> = files
        .map(|(file, _)| file.to_owned())
        .filter(|file| file.starts_with("docs/") && !file.starts_with("docs/embedded/"))
        .collect();
    pages.push("README.md".to_owned());
    pages.sort();
    pages.dedup();
    pages
}

#[test]
fn every_page_of_the_guide_is_in_the_documentation_and_in_the_index() {
    let pages = pages();
    let index = read("docs/guide/README.md");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide");
    let mut found = 0;
    for file in fs::read_dir(folder).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(pages.contains(&format!("docs/guide/{name}")), "{name}");
        let is_listed = index.contains(&format!("]: {name}\n"));
        assert!(name == "README.md" || is_listed, "{name} is not listed");
        found += 1;
    }
    assert!(found >= 12, "{found}");
}

#[test]
fn every_state_has_its_place_in_the_tables_and_in_the_troubleshooting() {
    let readme = read("README.md");
    let states = read("docs/guide/in-the-process.md");
    let troubleshooting = read("docs/guide/troubleshooting.md");
    let mut headings = troubleshooting
        .lines()
        .filter(|line| line.starts_with("### "))
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    for state in State::ALL {
        let name = state.name();
        assert!(readme.contains(&format!("`{name}`")), "{name}");
        let recent = if state.is_recent() { "yes" } else { "no" };
        let row = states
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` |")));
        assert!(
            row.is_some_and(|row| row.ends_with(&format!("| {recent} |"))),
            "{name}"
        );
        // In the order of the tables, too.
        assert_eq!(headings.next(), Some(name));
    }
    assert_eq!(headings.next(), None);
}

/// The folders of the crate in the order of the design: each may use those below it.
fn anatomy() -> Vec<String> {
    let design = read("docs/DESIGN.md");
    let (_, anatomy) = design.split_once("## Anatomy").unwrap();
    blocks(anatomy)[0]
        .text
        .lines()
        .filter_map(|line| line.split('/').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_anatomy_of_the_crate_is_that_of_its_folders() {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // The documentation, and the models of the lock-free parts.
        if entry.file_type().unwrap().is_dir() && name != "guide" && name != "models" {
            found.push(name);
        }
    }
    let mut named = anatomy();
    named.sort();
    found.sort();
    assert_eq!(named, found);
}

#[test]
fn no_folder_uses_one_above_it() {
    let folders = anatomy();
    for (n, folder) in folders.iter().enumerate() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src")
            .join(folder);
        for file in sources(&path) {
            let source = fs::read_to_string(&file).unwrap();
            // Tests may use anything.
            let code = source.split("mod tests {").next().unwrap();
            for line in code.lines().filter(|line| !line.trim().starts_with("//")) {
                for name in line.split("crate::").skip(1) {
                    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                    let name = &name[..end.unwrap_or(name.len())];
                    let is_above = folders[..n].iter().any(|above| above == name);
                    assert!(
                        !is_above,
                        "{folder} uses {name}, which is above it: {file:?}"
                    );
                }
            }
        }
    }
}

/// The files of Rust in a folder and below.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.append(&mut sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_readme_has_every_feature() {
    let (_, features) = include_str!("../../Cargo.toml")
        .split_once("\n[features]\n")
        .unwrap();
    let features = features.split("\n[").next().unwrap();
    let readme = read("README.md");
    let mut found = 0;
    for line in features.lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, _)) = line.split_once(" = ") {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
            found += 1;
        }
    }
    assert!(found >= 10, "{found}");
}

/// A link from page to page leads to a file in the repository, and to a module in the built
/// documentation, where another definition of the same name comes first.
#[test]
fn links_of_pages_have_a_definition_for_the_built_documentation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut definitions = String::new();
    for folder in ["src/guide/links", "docs/embedded"].map(|name| folder.join(name)) {
        for file in fs::read_dir(folder).unwrap() {
            definitions += &fs::read_to_string(file.unwrap().path()).unwrap();
        }
    }
    let mut links = 0;
    for page in pages().into_iter().filter(|page| page != "README.md") {
        let text = read(&page);
        for (target, _) in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
        {
            let elsewhere = target.starts_with("https://") || target.starts_with('#');
            assert!(elsewhere, "{page}: {target} must be a definition");
        }
        for line in text.lines().filter(|line| line.starts_with('[')) {
            let Some((label, _target)) = line.split_once("]: ") else {
                continue;
            };
            let definition = format!("{label}]: ").to_lowercase();
            let mut known = definitions.lines().map(str::to_lowercase);
            assert!(
                known.any(|line| line.starts_with(&definition)),
                "{page}: {line}"
            );
            links += 1;
        }
    }
    assert!(links > 40, "{links}");
}

#[test]
fn the_programs_of_the_readme_print_what_it_shows() {
    let blocks = blocks(&read("README.md"));
    let mut shown = blocks
        .windows(2)
        .filter(|pair| pair[0].language == "rust" && pair[1].language == "text")
        .map(|pair| &pair[1].text);
    for name in &PROGRAMS[..2] {
        let ended = run(name, &[]);
        ended.assert_success();
        // In the example, the comment comes before the program.
        let comment = example(name).0.lines().count();
        let place = format!("examples/{name}.rs:");
        let mut printed = ended.stdout;
        if let Some((before, rest)) = printed.split_once(&place) {
            let (line, after) = rest.split_once(':').unwrap();
            let line = line.parse::<usize>().unwrap() - comment;
            printed = format!("{before}src/main.rs:{line}:{after}");
        }
        assert_eq!(lasting(&printed), lasting(shown.next().unwrap()), "{name}");
    }
    assert!(shown.next().is_none());
}

/// Commands in the documents that query a server.
#[cfg(all(
    feature = "beacon",
    feature = "cli",
    feature = "http",
    feature = "prometheus",
    feature = "systemd"
))]
mod commands {
    use std::process::Command;

    use super::{Block, PROGRAMS, blocks, lasting, read};
    use crate::support::examples::{Example, poll};

    /// The command that starts an example on a page: `cargo run --example NAME … -- ARGUMENTS`.
    struct Started {
        /// The address on the page.
        shown: String,
        /// The address in this test.
        address: String,
        _example: Example,
    }

    impl Started {
        fn from(name: &str, arguments: &[&str], shown: &str) -> Self {
            let example = Example::start(name, arguments);
            let address = example.wait_for("its address", |said| {
                let (_, address) = said.split_once("http://")?;
                Some(address.split_once('/')?.0.to_owned())
            });
            Self {
                shown: shown.to_owned(),
                address,
                _example: example,
            }
        }

        /// `None` if the command starts no server at a named address.
        fn by(command: &str) -> Option<Self> {
            let (command, arguments) = command.split_once(" -- ")?;
            let name = command.strip_prefix("cargo run --example ")?;
            let name = name.split(' ').next().unwrap();
            let address = arguments
                .split(' ')
                .find(|argument| argument.contains("127.0.0.1:"))?;
            // A port other than the page's: several tests may run at a time.
            let arguments: Vec<_> = arguments
                .split(' ')
                .map(|argument| {
                    if argument == address {
                        "127.0.0.1:0"
                    } else {
                        argument
                    }
                })
                .collect();
            let port = address.rsplit_once(':').unwrap().1;
            Some(Self::from(name, &arguments, &format!("localhost:{port}")))
        }

        /// Runs a block of the page in a shell until it prints the output on the page; once, if the
        /// page has none.
        fn ask(&self, commands: &str, shown: Option<&str>) {
            assert!(commands.contains(&self.shown), "{commands}");
            let script = commands.replace(&self.shown, &self.address);
            let answer = || {
                let output = Command::new("sh")
                    .args(["-ec", &script])
                    .env("NO_PROXY", "*")
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{commands}\n{output:?}");
                String::from_utf8(output.stdout).unwrap()
            };
            match shown {
                Some(shown) => {
                    let mut last = String::new();
                    poll(&format!("{shown} from {commands}"), || {
                        let answer = lasting(&answer());
                        if answer != last {
                            println!("{answer}");
                            last.clone_from(&answer);
                        }
                        (answer == lasting(shown)).then_some(())
                    });
                }
                None => assert!(!answer().is_empty(), "{commands}"),
            }
        }
    }

    fn asks(block: &Block) -> bool {
        block.language == "sh" && block.text.contains("curl ")
    }

    /// Sends the queries of the page, in its order. Returns how many blocks have a query.
    fn follow(page: &str, mut started: Option<Started>) -> usize {
        let blocks = blocks(&read(page));
        let mut asked = 0;
        for (n, block) in blocks.iter().enumerate() {
            if asks(block) {
                let shown = blocks.get(n + 1).filter(|next| next.language == "text");
                let started = started
                    .as_ref()
                    .unwrap_or_else(|| panic!("{page}: {block:?}"));
                started.ask(&block.text, shown.map(|shown| shown.text.as_str()));
                asked += 1;
            } else if block.language == "sh" {
                let begun = block.text.lines().find_map(Started::by);
                started = begun.or(started);
            }
        }
        asked
    }

    #[test]
    fn the_two_minutes_of_the_readme_end_with_a_probe_that_fails() {
        let started = Started::from(PROGRAMS[2], &[], "localhost:7718");
        started.ask("curl -s localhost:7718/livez; echo", Some("ok\n"));
        assert_eq!(follow("README.md", Some(started)), 1);
    }

    #[test]
    fn the_requests_of_the_pages_are_answered_as_they_show() {
        let pages = super::pages()
            .into_iter()
            .filter(|page| page != "README.md");
        let asked: usize = pages.map(|page| follow(&page, None)).sum();
        assert!(asked >= 6, "{asked}");
    }

    #[test]
    fn the_page_of_the_monitor_has_every_command() {
        let help = Command::new(env!("CARGO_BIN_EXE_heartbeat-monitor"))
            .arg("--help")
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let (_, commands) = help.split_once("Commands:\n").unwrap();
        let commands = commands.split("\n\n").next().unwrap();
        let page = read("docs/guide/monitor.md");
        let mut found = 0;
        for command in commands.lines() {
            let name = command.split_whitespace().next().unwrap();
            assert!(
                name == "help" || page.contains(&format!("| `{name}` |")),
                "{name}"
            );
            found += 1;
        }
        assert!(found >= 7, "{help}");
    }

    #[test]
    fn the_commands_of_the_monitor_work_on_a_file() {
        let program = env!("CARGO_BIN_EXE_heartbeat-monitor");
        let blocks = blocks(&read("docs/guide/monitor.md"));
        let commands = blocks.iter().position(|block| block.text.contains("/tmp/"));
        let (commands, shown) = (&blocks[commands.unwrap()], &blocks[commands.unwrap() + 1]);
        let folder = std::env::temp_dir().join(format!("wh-pages-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("fleet.db");
        let script = commands
            .text
            .replace("/tmp/fleet.db", file.to_str().unwrap())
            .replace("heartbeat-monitor", program);
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), shown.text);
    }
}
