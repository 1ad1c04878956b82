//! Runs that were killed, that meet another, or that could not write, and how they go on.

use crate::common::{command, marlin};
use crate::{original, path, quantise, same, text};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Ends the program by SIGKILL once the journal has `lines` lines.
fn kill_at(args: &[&str], unfinished: &Path, lines: usize) {
    let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let journal = unfinished.join("journal.jsonl");
    loop {
        let written = std::fs::read(&journal).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
        if written >= lines || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn killed_runs_continue(more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let (whole, out) = (path(folder.path(), "whole"), path(folder.path(), "out"));
    marlin(&quantise(&text, &whole, more)).ok();
    let args = quantise(&text, &out, more);
    let unfinished = folder.path().join("out.unfinished");
    let mut resumed = args.clone();
    resumed.push("--resume");
    for (i, lines) in [1, 40, 170, 285].into_iter().enumerate() {
        kill_at(if i == 0 { &args } else { &resumed }, &unfinished, lines);
        assert!(!Path::new(&out).exists(), "whole after {lines} lines");
    }
    // A torn line and bytes that no line tells of.
    let append = |name: &str, bytes: &[u8]| {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(unfinished.join(name)).unwrap();
        file.write_all(bytes).unwrap();
    };
    append("journal.jsonl", b"{\"Module\":{\"module\":\"model.lay");
    let mut left = std::fs::read_dir(&unfinished).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let data = left.find(|n| n.starts_with("data-")).unwrap();
    append(&data, b"torn");
    let refused = marlin(&args).error(1);
    assert!(refused.contains("--resume continues it"), "{refused}");
    marlin(&resumed).ok();
    same(Path::new(&whole), Path::new(&out));
    assert!(!unfinished.exists());
}

#[test]
fn a_killed_run_is_continued_to_the_same_bytes() {
    killed_runs_continue(&["--format", "int4"]);
}

#[test]
fn a_killed_sequential_run_is_continued_to_the_same_bytes() {
    killed_runs_continue(&["--format", "int4", "--sequential", "--expert-inputs", "shared"]);
}

#[test]
fn two_runs_do_not_work_in_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (text(folder.path()), path(folder.path(), "out"));
    let unfinished = folder.path().join("out.unfinished");
    let args = quantise(&text, &out, &["--format", "int4", "--resume"]);
    kill_at(&args, &unfinished, 1);
    // As another run would hold it.
    let lock = std::fs::File::options().write(true).open(unfinished.join(".lock")).unwrap();
    lock.try_lock().unwrap();
    let refused = marlin(&args).error(1);
    assert!(refused.contains("out.unfinished") && refused.contains("another run is at work in it"), "{refused}");
    drop(lock);
    marlin(&args).ok();
    assert!(!unfinished.exists());
    marlin(&["verify", &out]).ok();

    let stats = folder.path().join("stats");
    std::fs::create_dir(&stats).unwrap();
    let lock = std::fs::File::create(stats.join(".lock")).unwrap();
    lock.try_lock().unwrap();
    let (stats, small) = (stats.to_string_lossy(), ["--samples", "1", "--length", "16"]);
    let calibrate = [&["calibrate", original(), "--text", &text, "-o", &stats][..], &small].concat();
    assert!(marlin(&calibrate).error(1).contains("another run is at work in it"));
    drop(lock);
    marlin(&calibrate).ok();
    assert!(!Path::new(&*stats).join(".lock").exists());
}

#[test]
fn a_run_is_not_continued_with_other_settings() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (text(folder.path()), path(folder.path(), "out"));
    kill_at(&quantise(&text, &out, &["--format", "int4"]), &folder.path().join("out.unfinished"), 1);
    for other in [&["--damping", "0.05"][..], &["--exact"]] {
        let more = [&["--format", "int4", "--resume"], other].concat();
        let refused = marlin(&quantise(&text, &out, &more)).error(1);
        assert!(refused.contains("was begun with another model, text or settings"), "{refused}");
    }
}

/// Files cannot grow beyond what the shell allows, as on a full disk: the run fails, and continues when there is room.
#[cfg(unix)]
#[test]
fn a_write_that_fails_is_told_and_can_be_continued() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (path(folder.path(), "whole"), path(folder.path(), "out"));
    let args = |out: &str| ["quantize", original(), "--format", "int8", "-o", out].map(str::to_owned);
    let strs = |args: &'_ [String]| args.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    marlin(&args(&whole).each_ref().map(|s| s.as_str())).ok();
    let mut shell = command(&[]);
    let program = shell.get_program().to_string_lossy().into_owned();
    let limited = format!("trap '' XFSZ; ulimit -f 4096; exec {program} {}", strs(&args(&out)));
    shell = std::process::Command::new("sh");
    shell.args(["-c", &limited]);
    let error = crate::common::finish(shell, "").error(1);
    assert!(error.contains("out.unfinished") && error.contains("large"), "{error}");
    assert!(!Path::new(&out).exists());
    let mut resumed: Vec<String> = args(&out).into();
    resumed.push("--resume".to_owned());
    marlin(&resumed.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    same(Path::new(&whole), Path::new(&out));
}
