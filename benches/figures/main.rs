//! Every figure that this crate promises, measured.
//!
//! `cargo bench --bench figures` prints the table;
//! `cargo bench --bench figures -- --write docs/BENCHMARKS.md` also puts it between
//! `<!-- figures: begin -->` and `<!-- figures: end -->` in that file;
//! `cargo bench --bench figures -- --only summary` measures one section. The section of call stacks needs
//! `--features stacks`.

mod allocations;
mod background;
mod beat;
mod contest;
mod idle;
mod is_recent;
mod layouts;
mod noise;
mod page;
mod panics;
mod population;
mod rivals;
#[cfg(feature = "stacks")]
mod stacks;
mod stopwatch;
mod summary;
mod table;
mod update_task;

use std::process::ExitCode;
use std::time::Instant;

use noise::Noise;
use table::Table;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

fn main() -> ExitCode {
    match Order::from_args(std::env::args().skip(1)).and_then(Order::carry_out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Section = (&'static str, fn(&mut Table));

/// What is measured, in the order of the table.
const SECTIONS: &[Section] = &[
    ("beat", beat::measure),
    ("update_task", update_task::measure),
    ("is_recent", is_recent::measure),
    ("summary", summary::measure),
    ("idle", idle::measure),
    ("panics", panics::measure),
    #[cfg(feature = "stacks")]
    ("stacks", stacks::measure),
];

/// Measures everything, or one section, and returns the text for the page.
fn measure(only: Option<&str>) -> String {
    let begun = Instant::now();
    let before = Noise::measure();
    println!("a loop that is always the same takes {before}\n");
    println!("{}", Table::HEAD);
    let mut table = Table::default();
    for (name, measure) in SECTIONS {
        if only.is_none_or(|only| only == *name) {
            measure(&mut table);
        }
    }
    let after = Noise::measure();

    let noise =
        format!("Noise: a loop that is always the same took {before} before, {after} after.");
    println!("\n{noise}\ntook {:.0} s", begun.elapsed().as_secs_f64());
    let missed: Vec<_> = table.missed().map(ToString::to_string).collect();
    if missed.is_empty() {
        println!("every figure is reached");
    } else {
        println!("missed:\n{}", missed.join("\n"));
    }
    format!(
        "{table}\n\
         Measured by `cargo bench --bench figures` with worker-heartbeat {} and beatwise 0.2.1 in the \
         same run, by turns; {}. Times exclude preemption. {noise}",
        env!("CARGO_PKG_VERSION"),
        noise::machine(),
    )
}

/// What the command line asks for.
#[derive(Default)]
struct Order {
    measure: bool,
    only: Option<String>,
    write: Option<String>,
}

impl Order {
    fn carry_out(self) -> Result<(), String> {
        match self.write {
            _ if !self.measure => {
                println!("run by `cargo bench`, this measures; otherwise it does nothing");
            }
            None => drop(measure(self.only.as_deref())),
            Some(path) => {
                let unchanged = |error| format!("{path} is unchanged: {error}");
                // Before the time is spent.
                page::check(&path, "figures").map_err(unchanged)?;
                page::rewrite(&path, "figures", &measure(None)).map_err(unchanged)?;
                println!("written to {path}");
            }
        }
        Ok(())
    }

    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut order = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                // Cargo's own: `cargo bench` passes it, `cargo test --all-targets` does not.
                "--bench" => order.measure = true,
                "--write" => {
                    order.write = Some(args.next().ok_or("--write needs the name of a file")?);
                }
                "--only" => {
                    let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
                    let only = args.next().filter(|name| known.contains(&&**name));
                    order.only =
                        Some(only.ok_or_else(|| format!("--only needs one of {known:?}"))?);
                }
                other => {
                    return Err(format!(
                        "unknown: {other}; known: --write <file>, --only <section>"
                    ));
                }
            }
        }
        if order.only.is_some() && order.write.is_some() {
            return Err("only the whole table can be written".to_owned());
        }
        Ok(order)
    }
}
