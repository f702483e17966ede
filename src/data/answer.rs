//! Final answers in free text: how they are marked, what they are worth, and whether two are the same.
//!
//! Used to keep or refuse a rewritten answer and to score generative tasks, so both judge alike. The strict filter is the one
//! that GSM8K's paper (Cobbe et al. 2021, arXiv 2110.14168) and lm-evaluation-harness use.

use regex::Regex;
use std::sync::LazyLock;

/// A way to find the final answer in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// GSM8K strict: the first number marked `#### `.
    Strict,
    /// GSM8K flexible: the last number anywhere.
    Flexible,
    /// What follows the last `####` on its line, number or not.
    Hash,
    /// What the last `\boxed{}` holds, braces matched.
    Boxed,
    /// An option letter A to J: after "answer is", in brackets, or alone; the last one found.
    Letter,
    /// What follows the last "answer is" or "answer:" up to the end of its sentence.
    Stated,
    /// The whole text, spaces at both ends dropped.
    Exact,
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are constant and tested")
}

static STRICT: LazyLock<Regex> = LazyLock::new(|| regex(r"#### (-?[0-9.,]+)"));
static HASH: LazyLock<Regex> = LazyLock::new(|| regex(r"####[ \t]*([^\r\n]*)"));
/// A number with its sign and currency; commas count only between groups of three digits.
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| regex(r"[-−]?[$€£]?[-−]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"));
static LETTER: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?i:answer(?:\s+is)?:?\s*(?:option\s+)?)\(?([A-J])\b|[(\[]([A-J])[)\]]|(?m:^\W*([A-J])\W*$)")
});
static STATED: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?i)answer(?:\s+is\s*:?|\s*:)[ \t*]*([^\r\n]*?)[ \t*]*(?:[.!]?[ \t]*(?:$|[\r\n])|[.!]\s)")
});
static FRACTION: LazyLock<Regex> = LazyLock::new(|| regex(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}"));
static TEXT: LazyLock<Regex> = LazyLock::new(|| regex(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}"));

/// The final answer of `text` as `style` finds it, as written there; `None` when there is none.
pub fn extract(text: &str, style: Style) -> Option<String> {
    let found = match style {
        Style::Strict => STRICT.captures(text)?.get(1)?.as_str(),
        Style::Flexible => return last_number(text),
        Style::Hash => HASH.captures_iter(text).last()?.get(1)?.as_str(),
        Style::Boxed => boxed(text)?,
        Style::Letter => LETTER.captures_iter(text).last()?.iter().skip(1).flatten().next()?.as_str(),
        Style::Stated => STATED.captures_iter(text).last()?.get(1)?.as_str(),
        Style::Exact => text,
    };
    let found = found.trim();
    (!found.is_empty()).then(|| found.to_string())
}

/// The last number; a minus that stands behind a letter, a digit or a bracket is an operator or a hyphen, not its sign.
fn last_number(text: &str) -> Option<String> {
    let found = NUMBER.find_iter(text).last()?;
    let before = text[..found.start()].chars().next_back();
    let operator = before.is_some_and(|c| c.is_alphanumeric() || c == ')' || c == ']');
    let number = found.as_str();
    Some(if operator { number.trim_start_matches(['-', '−']) } else { number }.to_string())
}

/// The inside of the last `\boxed{...}` (or `\fbox{...}`) whose braces match.
fn boxed(text: &str) -> Option<&str> {
    let start = [r"\boxed{", r"\fbox{"].iter().filter_map(|tag| Some(text.rfind(tag)? + tag.len())).max()?;
    let mut depth = 1;
    for (i, c) in text[start..].char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some(&text[start..start + i]);
        }
    }
    None
}

/// An answer without what does not change it: spaces, case, `$`, `%`, thousands commas, a final full stop, the zeros of `12.50`
/// and `007`, brackets around an option letter, TeX wrappers.
pub fn normalise(answer: &str) -> String {
    let mut text = answer.trim().to_string();
    for (from, to) in [(r"\$", "$"), (r"\%", "%"), (r"\!", ""), (r"\,", ""), (r"\ ", " "), ("**", ""), ("−", "-")] {
        text = text.replace(from, to);
    }
    text = TEXT.replace_all(&text, "$1").into_owned();
    text = FRACTION.replace_all(&text, "$1/$2").into_owned();
    let text = text.trim().trim_end_matches(['.', '!']).trim();
    if let Some(number) = number(text) {
        return number;
    }
    let bare = text.trim_matches(['"', '\'', '“', '”', '`']);
    let letter = bare.strip_prefix('(').unwrap_or(bare);
    let letter = letter.strip_suffix(')').unwrap_or(letter);
    let kept = if letter.chars().count() == 1 { letter } else { bare };
    kept.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// `text` as a plain decimal when it is a number and nothing else.
fn number(text: &str) -> Option<String> {
    let (mut negative, mut digits) = (false, String::new());
    for c in text.chars() {
        match c {
            '-' if digits.is_empty() && !negative => negative = true,
            '+' | '$' | '€' | '£' if digits.is_empty() => {}
            '%' | ',' | ' ' | '_' | '$' | '€' | '£' => {}
            '.' if digits.contains('.') => return None,
            '0'..='9' | '.' => digits.push(c),
            _ => return None,
        }
    }
    // "1,2" is a pair, "1,234" a number: commas must part groups of three.
    let whole = text.split('.').next().unwrap_or(text);
    let bare = |group: &str| group.chars().filter(char::is_ascii_digit).count();
    let grouped = whole.split(',').skip(1).all(|group| bare(group) == 3);
    if !grouped || !digits.contains(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let mut out = if whole.is_empty() { "0".to_string() } else { whole.to_string() };
    if !fraction.is_empty() {
        out = format!("{out}.{fraction}");
    }
    Some(if negative && out != "0" { format!("-{out}") } else { out })
}

/// Whether two answers are the same after [`normalise`].
pub fn same(a: &str, b: &str) -> bool {
    normalise(a) == normalise(b)
}

/// Whether a whole text is nothing but a short answer: a number, an option letter, yes, no, true or false.
pub fn is_short(text: &str) -> bool {
    let answer = normalise(text);
    number(&answer).is_some() || is_letter(&answer) || ["yes", "no", "true", "false"].contains(&answer.as_str())
}

fn is_letter(normalised: &str) -> bool {
    normalised.len() == 1 && matches!(normalised.as_bytes()[0], b'a'..=b'j')
}

/// How a text's final answer compares with a reference answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same.
    Same,
    /// Another one, given as found.
    Differs(String),
    /// The text has no answer of the reference's kind.
    Missing,
}

/// Compares the final answer of `text` with `reference`, looking for it as an answer of the reference's kind is written:
/// a mark (`####`, `\boxed{}`) always wins; then, for a number, the last number; for an option letter, the letter; for words,
/// what "answer is" states, else the last line, which must equal them.
pub fn check(text: &str, reference: &str) -> Verdict {
    let wanted = normalise(reference);
    let marked = extract(text, Style::Hash).or_else(|| extract(text, Style::Boxed));
    let judge = |found: String| if normalise(&found) == wanted { Verdict::Same } else { Verdict::Differs(found) };
    if number(&wanted).is_some() {
        // A marked answer may carry its unit: "#### 5 apples".
        let plain = marked.map(|m| if number(&normalise(&m)).is_some() { Some(m) } else { last_number(&m) });
        return plain.unwrap_or_else(|| last_number(text)).map_or(Verdict::Missing, judge);
    }
    if is_letter(&wanted) {
        let letter = marked.map(|m| if is_letter(&normalise(&m)) { Some(m) } else { extract(&m, Style::Letter) });
        return letter.unwrap_or_else(|| extract(text, Style::Letter)).map_or(Verdict::Missing, judge);
    }
    if let Some(found) = marked.or_else(|| extract(text, Style::Stated)) {
        return judge(found);
    }
    text.lines().rfind(|line| !line.trim().is_empty()).map_or(Verdict::Missing, |line| judge(line.trim().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_answers_are_found_where_people_put_them() {
        let table: &[(&str, Style, Option<&str>)] = &[
            ("5 + 3 = 8\n#### 8", Style::Strict, Some("8")),
            ("#### 1,234.50 dollars", Style::Strict, Some("1,234.50")),
            ("#### -7\n#### 9", Style::Strict, Some("-7")),
            ("####8", Style::Strict, None),
            ("#### $8", Style::Strict, None),
            ("The answer is 8", Style::Strict, None),
            ("#### $8", Style::Hash, Some("$8")),
            ("####8", Style::Hash, Some("8")),
            ("#### 1\nno\n#### blue whale \r\n", Style::Hash, Some("blue whale")),
            ("####", Style::Hash, None),
            ("He pays $1,540.50.", Style::Flexible, Some("$1,540.50")),
            ("1, 2, 3", Style::Flexible, Some("3")),
            ("1,2,3", Style::Flexible, Some("3")),
            ("from 12,345,678 on", Style::Flexible, Some("12,345,678")),
            ("it fell to -$5", Style::Flexible, Some("-$5")),
            ("10-5", Style::Flexible, Some("5")),
            ("x = -5", Style::Flexible, Some("-5")),
            ("a temperature of −3.5 degrees", Style::Flexible, Some("−3.5")),
            ("a COVID-19", Style::Flexible, Some("19")),
            ("about .75 of it.", Style::Flexible, Some(".75")),
            ("It took 3.", Style::Flexible, Some("3")),
            ("nothing", Style::Flexible, None),
            ("", Style::Flexible, None),
            (r"so \boxed{42}.", Style::Boxed, Some("42")),
            (r"\boxed{1} then \boxed{\frac{3}{4}}", Style::Boxed, Some(r"\frac{3}{4}")),
            (r"\boxed{open", Style::Boxed, None),
            (r"\boxed{}", Style::Boxed, None),
            ("The answer is (B).", Style::Letter, Some("B")),
            ("The answer is B because", Style::Letter, Some("B")),
            ("Answer: C", Style::Letter, Some("C")),
            ("(A) is wrong, so (D)", Style::Letter, Some("D")),
            ("I think\nB.", Style::Letter, Some("B")),
            ("A big dog", Style::Letter, None),
            ("The answer is Bob", Style::Letter, None),
            ("The answer is blue whale.", Style::Stated, Some("blue whale")),
            ("The answer is: 3.5. Then", Style::Stated, Some("3.5")),
            ("Answer: **yes**", Style::Stated, Some("yes")),
            ("no statement", Style::Stated, None),
            ("  all of it ", Style::Exact, Some("all of it")),
            (" ", Style::Exact, None),
        ];
        for (text, style, want) in table {
            assert_eq!(extract(text, *style).as_deref(), *want, "{style:?} of {text:?}");
        }
    }

    #[test]
    fn the_same_answer_in_other_clothes_is_the_same() {
        let same_pairs = [
            ("1,540", "1540"),
            ("$1540", "1540"),
            ("1540.00", "1540"),
            ("50%", "50"),
            (r"50\%", "50"),
            ("12.50", "12.5"),
            ("007", "7"),
            (".5", "0.5"),
            ("-0", "0"),
            ("+3", "3"),
            ("−3", "-3"),
            ("8.", "8"),
            ("-$5", "-5"),
            ("$-5", "-5"),
            ("(B)", "b"),
            ("Yes.", "yes"),
            ("Blue  Whale", "blue whale"),
            (r"\text{Paris}", "paris"),
            (r"\frac{3}{4}", "3/4"),
            ("12345678901234567890123", "12,345,678,901,234,567,890,123"),
        ];
        for (a, b) in same_pairs {
            assert!(same(a, b), "{a:?} and {b:?}: {:?} and {:?}", normalise(a), normalise(b));
        }
        for (a, b) in [
            ("1", "-1"),
            ("1,2", "12"),
            ("1.5", "15"),
            ("3/4", "34"),
            ("A", "B"),
            ("yes", "no"),
            ("0.1", "0.01"),
            ("", "0"),
            ("1.2.3", "123"),
        ] {
            assert!(!same(a, b), "{a:?} and {b:?}");
        }
    }

    #[test]
    fn a_text_is_judged_by_the_kind_of_its_reference() {
        use Verdict::*;
        let differs = |s: &str| Differs(s.to_string());
        let table = [
            ("She has 3 + 4 = 7 apples.", "7", Same),
            ("She has 7 apples.\n#### 7 apples", "7", Same),
            ("#### 7\nNote that 2 were lost.", "7", Same),
            (r"\boxed{1,000}", "1000.0", Same),
            ("She has 8 apples.", "7", differs("8")),
            ("She has many.", "7", Missing),
            ("#### none", "7", Missing),
            ("", "7", Missing),
            ("The answer is (C).", "C", Same),
            ("The answer is (C).", "(c)", Same),
            ("The answer is (D).", "C", differs("D")),
            ("I do not know.", "C", Missing),
            ("So the answer is Finnan.", "Finnan", Same),
            ("It goes like this.\nFinnan\n", "finnan", Same),
            ("It is not Finnan", "Finnan", differs("It is not Finnan")),
            (r"\boxed{\text{Paris}}", "Paris", Same),
            ("The answer is 3/4.", "3/4", Same),
            ("", "Paris", Missing),
        ];
        for (text, reference, want) in table {
            assert_eq!(check(text, reference), want, "{text:?} against {reference:?}");
        }
    }
}
