//! A disk that is full, or read-only, from each change on: exit code 4, one line with file and cause, and once the disk is
//! well again the same command gives the bytes of an unbroken run.

use super::trace::{Ended, Fault, count};
use super::verbs::{DISTILL, FINETUNE, FINETUNE_FULL, PRUNE, RUN, RUN_UNFINISHED, UNFINISHED, Workshop};

fn refused_from_each_change(verb: &str, fault: Fault, cause: &str, leaves: &[&str]) {
    refused_from_every(1, verb, fault, cause, leaves);
}

/// The same from every `step`-th change on.
fn refused_from_every(step: usize, verb: &str, fault: Fault, cause: &str, leaves: &[&str]) {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let changes = count(&mut whole.command(verb));
    let mut refused = 0;
    for at in (0..changes).step_by(step) {
        let attempt = workshop.attempt("refused");
        let Ended { status, stderr, .. } = attempt.run(verb, fault, at);
        // Nothing that the result needs was refused, where only left-overs were to be removed.
        if status.code() != Some(0) {
            assert_eq!(status.code(), Some(4), "{fault:?} at change {at}: {stderr}");
            assert!(stderr.starts_with("error: ") && stderr.ends_with(&format!("{cause}\n")), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            let file = stderr["error: ".len()..].split(": cannot ").next().unwrap();
            assert!(file.contains("out") || file == ".", "{stderr}");
            refused += 1;
        }
        if fault == Fault::FullDisk {
            let left = attempt.hidden();
            let known = |path: &std::path::PathBuf| leaves.iter().any(|name| path.ends_with(name));
            assert!(left.iter().all(known), "{fault:?} at change {at}: {left:?}");
        }
        assert!(attempt.finish(verb) == whole.results(), "{fault:?} at change {at} of {changes}: {stderr}");
    }
    assert!(refused > changes / step / 2, "{refused} of {changes} by {step}");
}

const FULL: &str = "No space left on device (os error 28)";
const READ_ONLY: &str = "Read-only file system (os error 30)";

#[test]
fn a_full_disk_ends_a_cut_and_nothing_is_left() {
    refused_from_each_change(PRUNE, Fault::FullDisk, FULL, &[]);
}

#[test]
fn a_full_disk_ends_a_distillation_and_only_whole_rows_are_left() {
    refused_from_each_change(DISTILL, Fault::FullDisk, FULL, &UNFINISHED);
}

#[test]
fn a_full_disk_ends_a_training_of_an_adapter_and_only_whole_checkpoints_are_left() {
    refused_from_each_change(FINETUNE, Fault::FullDisk, FULL, &[]);
}

#[test]
fn a_full_disk_ends_a_training_of_all_weights_and_only_whole_checkpoints_are_left() {
    refused_from_each_change(FINETUNE_FULL, Fault::FullDisk, FULL, &[]);
}

#[test]
fn a_full_disk_ends_a_recipe_in_whichever_stage_it_is() {
    refused_from_every(29, RUN, Fault::FullDisk, FULL, &RUN_UNFINISHED);
}

#[test]
fn a_read_only_disk_ends_a_cut() {
    refused_from_each_change(PRUNE, Fault::ReadOnly, READ_ONLY, &[]);
}

#[test]
fn a_read_only_disk_ends_a_distillation() {
    refused_from_each_change(DISTILL, Fault::ReadOnly, READ_ONLY, &[]);
}

#[test]
fn a_read_only_disk_ends_a_training_of_an_adapter() {
    refused_from_each_change(FINETUNE, Fault::ReadOnly, READ_ONLY, &[]);
}

#[test]
fn a_read_only_disk_ends_a_training_of_all_weights() {
    refused_from_each_change(FINETUNE_FULL, Fault::ReadOnly, READ_ONLY, &[]);
}

#[test]
fn a_read_only_disk_ends_a_recipe_in_whichever_stage_it_is() {
    refused_from_every(29, RUN, Fault::ReadOnly, READ_ONLY, &[]);
}
