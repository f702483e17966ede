//! Two writers on one output, and an output that is gone on with under another setting.

use super::trace::{Fault, count};
use super::verbs::{DISTILL, FINETUNE, GENERATE, PRUNE, RUN, Workshop};
use ratoon::output::OutputLock;

/// Every verb that writes, with the name of its output.
const WRITERS: [(&str, &str); 11] = [
    (PRUNE, "out"),
    (DISTILL, "out.jsonl"),
    (FINETUNE, "out"),
    (GENERATE, "out.jsonl"),
    (RUN, "out"),
    ("score ../model --data ../text.txt --sample-tokens 16 --block-size 1 -o out.csv", "out.csv"),
    ("eval ../model --perplexity ../text.txt --window 16 -o out.json", "out.json"),
    ("merge ../model --adapter ../adapter -o out", "out"),
    ("merge ../model --slerp ../model -o out", "out"),
    ("convert ../model.gguf out", "out"),
    ("init --preset tiny -o out", "out"),
];

#[test]
fn a_second_writer_is_told_so_and_changes_nothing() {
    let workshop = Workshop::new();
    for (verb, output) in WRITERS {
        let attempt = workshop.attempt("second");
        let first = OutputLock::acquire(&attempt.dir.join(output)).unwrap();
        let second = attempt.command(verb).output().unwrap();
        let message = String::from_utf8(second.stderr).unwrap();
        assert_eq!(second.status.code(), Some(6), "{verb}: {message}");
        assert!(message.starts_with(&format!("error: {output}: another process is writing here")), "{verb}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(attempt.results().is_empty(), "{verb}: {:?}", attempt.results().keys());
        drop(first);
        if verb != RUN {
            attempt.finish(verb);
        }
    }
}

#[test]
fn going_on_with_another_setting_is_refused_by_its_name_and_changes_nothing() {
    let workshop = Workshop::new();
    for (verb, other, named) in [
        (FINETUNE, ["--seed", "9"], "--seed (resuming out/checkpoint-"),
        (FINETUNE, ["--warmup-steps", "1"], "--warmup-steps (resuming out/checkpoint-"),
        (FINETUNE, ["--max-length", "99"], "--max-length (resuming out/checkpoint-"),
        (DISTILL, ["--temperature", "0.5"], "out.jsonl: setting temperature: expected 0.9"),
        (DISTILL, ["--limit", "5"], "out.jsonl: setting limit: expected null"),
        (GENERATE, ["--top-k", "7"], "out.jsonl: setting top_k: expected 0"),
        (GENERATE, ["--stop", "x"], "out.jsonl: setting stop: expected []"),
    ] {
        let whole = workshop.attempt("whole");
        let changes = count(&mut whole.command(verb));
        let attempt = workshop.attempt("other");
        let ended = attempt.run(verb, Fault::Kill, changes * 3 / 4);
        assert_eq!(ended.status.code(), None);
        let before = attempt.results();
        let refused = attempt.command(verb).args(other).output().unwrap();
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{message}");
        assert!(message.starts_with(&format!("error: {named}")) && message.contains(other[1]), "{message}");
        assert!(attempt.results() == before, "{verb} {other:?}");
        assert!(attempt.finish(verb) == whole.results(), "{verb}");
    }
}
