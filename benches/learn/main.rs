//! Learned limits against beatwise's models, and against other ways to learn, on the same silences.
//!
//! `cargo bench --bench learn` prints the tables;
//! `cargo bench --bench learn -- --write docs/COMPARE.md` also puts them between
//! `<!-- learn: begin -->` and `<!-- learn: end -->` in that file.

mod models;
#[path = "../figures/page.rs"]
mod page;
mod traces;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use beatwise::{LearnedTiming, LearningModel, Monitor, TaskConfig, Timing, TimingStatus};
use models::{Model, beatwise_models, others, ours};
use traces::{Dice, TRACES, Trace};

const DAYS: f64 = 2.0;
const SEEDS: u64 = 3;
/// The first hour is for learning: no hang is assumed in it. False convictions count from the start.
const WARM_UP: f64 = 3_600.0;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut bench, mut write) = (false, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo's own: `cargo bench` passes it, `cargo test --all-targets` does not.
            "--bench" => bench = true,
            "--write" => write = Some(args.next().ok_or("--write needs the name of a file")?),
            other => return Err(format!("unknown: {other}; known: --write <file>")),
        }
    }
    if !bench {
        println!("run by `cargo bench`, this measures; otherwise it does nothing");
        return Ok(());
    }
    let unchanged = |path: &str, error| format!("{path} is unchanged: {error}");
    if let Some(path) = &write {
        page::check(path, "learn").map_err(|error| unchanged(path, error))?;
    }
    check_simulation()?;
    let text = tables();
    println!("{text}");
    if let Some(path) = &write {
        page::rewrite(path, "learn", &text).map_err(|error| unchanged(path, error))?;
        println!("written to {path}");
    }
    Ok(())
}

/// The result of one model on one trace.
#[derive(Clone, Copy, Default)]
struct Score {
    /// Healthy silences beyond the limit.
    convictions: u64,
    /// How long a hang that begins at any time lasts until it is found, on average.
    detection: f64,
}

/// Replays silences until this many seconds are over.
fn replay(trace: &Trace, seed: u64, seconds: f64, model: &mut dyn Model) -> Score {
    let mut dice = Dice(seed);
    let (mut now, mut number, mut convictions) = (0.0, 0, 0);
    let (mut weighted, mut weight) = (0.0, 0.0);
    while now < seconds {
        let silence = (trace.silence)(&mut dice, now, number);
        let limit = model.limit();
        convictions += u64::from(silence > limit);
        if now > WARM_UP {
            weighted += limit * silence;
            weight += silence;
        }
        model.observe(now, now + silence);
        now += silence;
        number += 1;
    }
    Score {
        convictions,
        detection: weighted / weight,
    }
}

fn replay_all(trace: &Trace, make: &dyn Fn() -> Box<dyn Model>) -> Score {
    let mut all = Score::default();
    for seed in 1..=SEEDS {
        let score = replay(trace, seed, DAYS * 86_400.0, &mut *make());
        all.convictions += score.convictions;
        all.detection += score.detection / SEEDS as f64;
    }
    all
}

/// The sensitivity at which a model finds hangs as soon as this on a trace, found by bisection on a day
/// of it.
fn tuned(trace: &Trace, target: f64, make: &dyn Fn(f64) -> Box<dyn Model>) -> f64 {
    let (mut low, mut high) = (0.1_f64, 1e5_f64);
    for _ in 0..18 {
        let middle = (low * high).sqrt();
        if replay(trace, 1, 86_400.0, &mut *make(middle)).detection > target {
            high = middle;
        } else {
            low = middle;
        }
    }
    (low * high).sqrt()
}

fn tables() -> String {
    let begun = Instant::now();
    let mut text = String::from(
        "| silences | longest | this crate | beatwise fixed, at equal detection | beatwise EWMA | beatwise robust window \
         | beatwise pattern |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut choice = String::from("| silences |");
    let mut head = String::from(" --- |");
    for (name, _) in others() {
        write!(choice, " {name} |").expect("a string");
        head += " --- |";
    }
    choice = format!("{choice}\n|{head}\n");
    for trace in &TRACES {
        eprintln!("{} after {:?}", trace.name, begun.elapsed());
        let own = replay_all(trace, &ours);
        let mut dice = Dice(1);
        let (mut now, mut longest, mut number) = (0.0, 0.0_f64, 0);
        while now < DAYS * 86_400.0 {
            let silence = (trace.silence)(&mut dice, now, number);
            longest = longest.max(silence);
            now += silence;
            number += 1;
        }
        let own_cell = format!("**{}** in {:.1} s", own.convictions, own.detection);
        write!(text, "| {} | {longest:.1} s | {own_cell} |", trace.name).expect("a string");
        for (name, make) in beatwise_models() {
            let equal = tuned(trace, own.detection, &*make);
            let at_equal = replay_all(trace, &|| make(equal));
            if name == "fixed" {
                write!(
                    text,
                    " {} in {:.1} s |",
                    at_equal.convictions, at_equal.detection
                )
            } else {
                let default = replay_all(trace, &|| make(4.0));
                write!(
                    text,
                    " {} in {:.1} s; tuned to {equal:.0}: {} in {:.1} s |",
                    default.convictions,
                    default.detection,
                    at_equal.convictions,
                    at_equal.detection
                )
            }
            .expect("a string");
        }
        text.push('\n');
        write!(choice, "| {} |", trace.name).expect("a string");
        for (_, make) in others() {
            let score = replay_all(trace, &make);
            write!(
                choice,
                " {} in {:.1} s |",
                score.convictions, score.detection
            )
            .expect("a string");
        }
        choice.push('\n');
    }
    format!(
        "{text}\nThe other ways to learn that were considered, each with one setting for all:\n\n{choice}\n\
         False convictions in {SEEDS} x {DAYS} simulated days, and the mean time in which a hang is found. \
         Measured by `cargo bench --bench learn` with worker-heartbeat {} and the models of beatwise 0.2.1; \
         the results are the same on every machine.",
        env!("CARGO_PKG_VERSION")
    )
}

/// Checks the simulated models of beatwise against the crate itself in real time: after the same beats,
/// the limits are the same.
fn check_simulation() -> Result<(), String> {
    let timings = [
        ("EWMA", LearningModel::Ewma),
        ("robust window", LearningModel::robust_window(31)),
        ("pattern", LearningModel::repeating_pattern(8, 3)),
    ];
    for (name, model) in timings {
        // A machine that is busy delays a beat between the crate's reading of the clock and this one.
        let agrees = (0..5).any(|_| agrees(name, model));
        if !agrees {
            return Err(format!("the simulation of beatwise's {name} is not right"));
        }
    }
    Ok(())
}

fn agrees(name: &str, model: LearningModel) -> bool {
    let monitor = Monitor::new();
    let timing = LearnedTiming::default()
        .with_minimum_samples(9)
        .with_model(model);
    let hb = monitor
        .register(TaskConfig::new("checked", Timing::Learned(timing)))
        .expect("the configuration is valid");
    let (_, make) = beatwise_models()
        .into_iter()
        .find(|(other, _)| *other == name)
        .expect("it has this name");
    let mut simulated = make(4.0);
    let (mut dice, origin) = (Dice(7), Instant::now());
    let mut last = None;
    for beat in 0..60 {
        let base = if beat % 2 == 0 { 2_000.0 } else { 6_000.0 };
        // Real time, which is what beatwise measures.
        std::thread::sleep(Duration::from_micros((base + 300.0 * dice.unit()) as u64));
        hb.beat().expect("it has not stopped");
        let now = origin.elapsed().as_secs_f64();
        if let Some(last) = last.replace(now) {
            simulated.observe(last, now);
        }
    }
    let status = monitor.status(hb.id()).expect("it is registered");
    let deadline = match status.timing {
        TimingStatus::Learned { deadline, .. } | TimingStatus::PatternLearned { deadline, .. } => {
            deadline.as_secs_f64()
        }
        _ => return false,
    };
    (deadline - simulated.limit()).abs() < 0.02 * deadline
}
