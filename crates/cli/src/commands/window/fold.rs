//! Runs a job, shows how far it is, and prints what it came to.

use std::{fs, path::Path};

use commonhold::{
    Error, Store,
    window::{
        self, Aggregates, Input, JobName, JobSpec, Outcome, Progress, RowError, RunOptions, Summary, Windows,
    },
};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;

use super::{Fold, show};
use crate::{
    commands::{Context, interrupted},
    failure::{Exit, Failure, Result},
    output::{self, counted, note, thousands},
};

const STDIN: &str = "-";

pub(super) async fn run(context: &mut Context, args: Fold) -> Result<()> {
    let job = job(&args)?;
    let bar = bar(&args);
    let result = fold(context, args, &job, bar.clone()).await;
    bar.finish_and_clear();
    let (store, summary) = result?;
    summary.skipped_rows.iter().for_each(|row| note(format!("skipped: {row}")));
    if summary.outcome == Outcome::Stopped {
        let message = format!("stopped after {}, which are kept", counted(summary.events, "event"));
        return Err(Failure::new(Exit::Interrupted, message).help("the same command goes on from there"));
    }
    show::windows(context, &store, &job).await?;
    context.out.flush()?;
    summarize(context, &job, &summary);
    Ok(())
}

/// Folds until the end of the input, or until Ctrl-C is pressed.
async fn fold(context: &Context, args: Fold, job: &JobName, bar: ProgressBar) -> Result<(Store, Summary)> {
    let spec = spec(&args)?;
    let inputs = args.files.iter().map(|path| input(path)).collect::<Result<Vec<_>>>()?;
    let (stop, stopped) = watch::channel(false);
    let options = RunOptions {
        restart: args.restart,
        commit_every: args.commit_every.get(),
        on_error: args.on_error.into(),
        late_file: args.late,
        stop: Some(stopped),
        progress: Some(Box::new(shown_on(bar))),
        ..RunOptions::default()
    };
    let run = async {
        let store = context.open().await?;
        let summary = window::run(&store, job, &spec, inputs, options).await.map_err(failure)?;
        Ok((store, summary))
    };
    tokio::pin!(run);
    tokio::select! {
        biased;
        () = interrupted() => {
            // It commits what it has folded and returns.
            let _running = stop.send(true);
            run.await
        }
        result = &mut run => result,
    }
}

fn spec(args: &Fold) -> Result<JobSpec> {
    let windows = match (args.windows.session, args.windows.size, args.slide) {
        (Some(gap), ..) => Windows::session(gap),
        (None, Some(size), Some(slide)) => Windows::hopping(size, slide),
        (None, size, _) => Windows::tumbling(size.unwrap_or_default()),
    }?;
    let mut spec = JobSpec::new(format(args)?, args.time.clone().unwrap_or_default(), windows)
        .with_lateness(args.lateness.unwrap_or_default())?;
    spec.time_unit = args.time_unit.map(Into::into);
    spec.keys.clone_from(&args.keys);
    let super::Aggregates { sum, min, max, mean, quantiles, distinct } = &args.aggregates;
    spec.aggregates = Aggregates {
        sum: sum.clone(),
        min: min.clone(),
        max: max.clone(),
        mean: mean.clone(),
        quantiles: quantiles.clone(),
        distinct: distinct.clone(),
    };
    spec.check()?;
    Ok(spec)
}

fn format(args: &Fold) -> Result<window::Format> {
    if let Some(format) = args.format {
        return Ok(format.into());
    }
    let mut formats = args.files.iter().map(|path| {
        window::Format::of(path).ok_or_else(|| {
            Failure::usage(format!("{}: the name does not say how events are written down", path.display()))
                .help("say --format csv or --format jsonl")
        })
    });
    let first = formats.next().unwrap_or_else(|| Err(Failure::usage("there is no FILE")))?;
    for format in formats {
        if format? != first {
            return Err(Failure::usage("some files are CSV and others are JSON lines")
                .help("give each form a job of its own"));
        }
    }
    Ok(first)
}

fn job(args: &Fold) -> Result<JobName> {
    match (&args.job, args.files.first()) {
        (Some(name), _) => Ok(JobName::new(name)?),
        (None, Some(path)) if path != Path::new(STDIN) => Ok(JobName::of(path)),
        _ => Ok(JobName::stdin()),
    }
}

fn input(path: &Path) -> Result<Input> {
    if path == Path::new(STDIN) { Ok(Input::stdin()) } else { Ok(Input::file(path)?) }
}

/// How far the files are read, where their sizes are known; a count of events otherwise.
fn bar(args: &Fold) -> ProgressBar {
    let size = |path: &std::path::PathBuf| match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Some(metadata.len()),
        _ => None,
    };
    let (bar, template) = match args.files.iter().map(size).sum::<Option<u64>>() {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "folding {wide_bar:.cyan/dim} {bytes} of {total_bytes}, {msg}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "folding {spinner} {bytes}, {msg}, {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

fn shown_on(bar: ProgressBar) -> impl FnMut(Progress) + Send {
    move |progress| {
        // The text is made only where it is drawn.
        if !bar.is_hidden() {
            bar.set_message(counted(progress.events, "event"));
        }
        bar.set_position(progress.bytes);
    }
}

/// Says what to do about a row that is no event.
fn failure(error: Error) -> Failure {
    let is_row = std::error::Error::source(&error).is_some_and(|source| source.is::<RowError>());
    let failure = Failure::from(error);
    if is_row {
        failure.help("correct it and run the same command again, or say --on-error skip")
    } else {
        failure
    }
}

/// Tells people what was done and how to see it again.
fn summarize(context: &Context, job: &JobName, summary: &Summary) {
    let Summary { events, late, skipped, windows, elapsed, .. } = summary;
    let (now, before) = (summary.new_events(), summary.resumed_from);
    let earlier = match (summary.outcome, before) {
        (Outcome::AlreadyFinished, _) => "; all by an earlier run, nothing new".to_owned(),
        (_, 0) => String::new(),
        (_, before) => format!("; {} of them by an earlier run, {} now", thousands(before), thousands(now)),
    };
    let rate = match now {
        0 => String::new(),
        _ => {
            let rate = summary.events_per_second().round();
            format!(" in {}, {} events/s", output::duration(*elapsed), thousands(rate))
        }
    };
    note(format!(
        "{}, {} late, {} skipped, {}{earlier}{rate}",
        counted(*events, "event"),
        thousands(late),
        thousands(skipped),
        counted(*windows, "window"),
    ));
    match command(context, job) {
        Some(command) => {
            note(format!("the windows lie in {}; see them again with: {command}", place(context)))
        }
        None => note("the windows were kept in memory and are gone now"),
    }
}

/// The store as far as it can be shown: without options, which may be secrets.
fn place(context: &Context) -> &str {
    context.settings.store.split('?').next().unwrap_or_default()
}

/// The command that prints the windows again, where something is left to be printed.
fn command(context: &Context, job: &JobName) -> Option<String> {
    if context.settings.store.starts_with("memory:") {
        return None;
    }
    let mut words = vec!["commonhold".to_owned(), "--store".to_owned(), quoted(place(context))];
    if let Some(namespace) = &context.settings.namespace {
        words.extend(["--namespace".to_owned(), quoted(namespace)]);
    }
    words.extend(["window".to_owned(), "show".to_owned(), quoted(job.as_str())]);
    Some(words.join(" "))
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || "_-./:=,+@%".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_take_them_apart() {
        assert_eq!(quoted("disk:./data"), "disk:./data");
        assert_eq!(quoted("my job's"), r"'my job'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
