//! The commands that do one thing and exit.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use worker_heartbeat::{BoxError, Sweeper};

use crate::args::{Arguments, CompletionsArgs, MigrateArgs, PurgeArgs, SweepArgs};
use crate::text::clean;

const PROGRAM: &str = "heartbeat-monitor";

pub type CommandResult = Result<ExitCode, BoxError>;

pub fn sweep(args: &SweepArgs) -> CommandResult {
    let report = Sweeper::new(args.store.open()?)
        .threshold(args.threshold)
        .watched_for(Duration::MAX)
        .dry_run(args.dry_run)
        .retention(args.retention.retention())
        .sweep()?;
    if !report.success {
        return Err("another sweep is running; nothing was done".into());
    }
    let would_be = if args.dry_run { "would be " } else { "" };
    let mut out = io::stdout().lock();
    for (kind, change, names) in [
        ("worker", "marked offline", &report.marked_offline),
        ("group", "offline as a whole", &report.affected_groups),
        ("lease of", "released", &report.released_leases),
    ] {
        for name in names {
            writeln!(out, "{kind} {}: {would_be}{change}", clean(name))?;
        }
    }
    for name in &report.busy {
        let name = clean(name);
        writeln!(
            out,
            "worker {name}: not marked, because another client locks it"
        )?;
    }
    if report.forgotten > 0 {
        writeln!(out, "{} {would_be}forgotten", report.forgotten)?;
    }
    let count = report.marked_offline.len();
    writeln!(out, "{count} {would_be}marked offline")?;
    Ok(ExitCode::SUCCESS)
}

pub fn purge(args: &PurgeArgs) -> CommandResult {
    let count = args.store.open()?.purge(args.older_than)?;
    writeln!(io::stdout(), "{count} deleted")?;
    Ok(ExitCode::SUCCESS)
}

pub fn migrate(args: &MigrateArgs) -> CommandResult {
    if let Some(role) = &args.grants {
        let sql = args.store.postgres().grants_sql(role)?;
        write!(io::stdout(), "{sql}")?;
    } else if args.print {
        let sql = args.store.postgres().migration_sql()?;
        write!(io::stdout(), "{sql}")?;
    } else {
        args.store.migrate()?;
        writeln!(io::stdout(), "the tables are up to date")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn completions(args: &CompletionsArgs) -> CommandResult {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(args.shell, &mut command, PROGRAM, &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// One page for the program, with a section for each command.
pub fn man() -> CommandResult {
    let mut page = Vec::new();
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    for command in command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let name = command.get_name().to_uppercase();
        writeln!(page, ".SH \"COMMAND {name}\"")?;
        let man = clap_mangen::Man::new(command.clone());
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        man.render_description_section(&mut part)?;
        man.render_options_section(&mut part)?;
        // Its sections are parts of this one.
        let part = String::from_utf8_lossy(&part).replace(".SH ", ".SS ");
        page.extend_from_slice(part.as_bytes());
    }
    man.render_extra_section(&mut page)?;
    man.render_version_section(&mut page)?;
    io::stdout().write_all(&page)?;
    Ok(ExitCode::SUCCESS)
}
