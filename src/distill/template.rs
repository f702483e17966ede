//! The prompt that asks the model to rewrite an answer: a TOML file of Jinja texts, built in or the user's own.

use crate::error::{Error, Result};
use crate::input::read_text;
use crate::model::Message;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const BUILT_IN: [(&str, &str); 2] =
    [("math", include_str!("templates/math.toml")), ("general", include_str!("templates/general.toml"))];

/// Steps a text may take, beside one for each byte of the row: some 10,000 times what the built-in ones need.
const FUEL: u64 = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    #[serde(default)]
    system: String,
    user: String,
    #[serde(default)]
    prefill: String,
}

/// A rewriting prompt.
pub struct Template {
    texts: Texts,
    path: PathBuf,
    sha256: String,
}

/// A template filled in for one row.
#[derive(Debug, PartialEq, Eq)]
pub struct Rendered {
    /// System message; empty: none.
    pub system: String,
    /// User message.
    pub user: String,
    /// How the reply begins.
    pub prefill: String,
}

impl Template {
    /// `math`, `general`, or the path of a file with the keys `user` (needed), `system` and `prefill`.
    pub fn load(name: &str) -> Result<Template> {
        let path = PathBuf::from(name);
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, source)) => Template::parse(source, &path),
            None if !path.exists() => Err(Error::usage(
                "--template",
                "math, general or a template file",
                format!("{name:?}, which does not exist"),
            )),
            None => Template::parse(&read_text(&path)?, &path),
        }
    }

    fn parse(source: &str, path: &Path) -> Result<Template> {
        let texts = toml::from_str(source).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + source[..span.start].matches('\n').count());
            let expected = "a template with the texts user, system and prefill";
            Error::format(path, format!("line {line}"), expected, e.message())
        })?;
        let sha256 = Sha256::digest(source).iter().map(|byte| format!("{byte:02x}")).collect();
        let template = Template { texts, path: path.to_path_buf(), sha256 };
        template.render("", "", "")?;
        Ok(template)
    }

    /// SHA-256 of the template's source.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Fills the texts in for one row. Line breaks at both ends of `system` and `user` are dropped.
    pub fn render(&self, instruction: &str, reference: &str, system: &str) -> Result<Rendered> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let row = instruction.len() + reference.len() + system.len();
        env.set_fuel(Some(FUEL + row as u64));
        let fill = |key: &str, text: &str| {
            env.render_str(text, context! { instruction, reference, system }).map_err(|e| {
                let expected = "Jinja that uses instruction, reference and system";
                Error::format(&self.path, key, expected, e.to_string().replace('\n', " "))
            })
        };
        Ok(Rendered {
            system: fill("system", &self.texts.system)?.trim().to_string(),
            user: fill("user", &self.texts.user)?.trim_matches('\n').to_string(),
            prefill: fill("prefill", &self.texts.prefill)?,
        })
    }
}

impl Rendered {
    /// The conversation to put to the model: the system message, the turns before the rewritten one, the request.
    pub fn conversation(&self, earlier: &[Message]) -> Vec<Message> {
        let system = (!self.system.is_empty()).then(|| Message::new("system", self.system.clone()));
        let turns = earlier.iter().filter(|m| m.role != "system").cloned();
        system.into_iter().chain(turns).chain([Message::new("user", self.user.clone())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_templates_hold_the_row_and_nothing_of_the_template_language() {
        for (name, _) in BUILT_IN {
            let rendered = Template::load(name).unwrap().render("Q {{x}}?", "A {% if", "S").unwrap();
            assert!(
                rendered.user.contains("Q {{x}}?") && rendered.user.contains("A {% if"),
                "text of a row is not Jinja"
            );
            assert_eq!(rendered.system, "S");
            assert!(rendered.user.ends_with("### Response"));
        }
        assert_eq!(Template::load("general").unwrap().render("", "", "").unwrap().prefill, "");
    }

    #[test]
    fn a_broken_template_is_named_with_its_place() {
        let fails = |source: &str| Template::parse(source, Path::new("t.toml")).err().unwrap().to_string();
        assert!(fails("user = 'x'\nusr = 'y'").contains("t.toml: line 2"), "{}", fails("user = 'x'\nusr = 'y'"));
        assert!(fails("system = 'x'").contains("user"));
        assert!(fails("user = '{{ nothing }}'").contains("user"));
        assert!(fails("user = '{% if %}'").contains("t.toml: user"));
        assert!(
            fails("user = '{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}'")
                .contains("fuel")
        );
        assert!(Template::load("/nonexistent/t.toml").is_err());
    }

    #[test]
    fn the_conversation_keeps_earlier_turns_and_one_system_message() {
        let rendered = Template::load("general").unwrap().render("i", "r", "be brief").unwrap();
        let earlier = [Message::new("system", "be brief"), Message::new("user", "a"), Message::new("assistant", "b")];
        let roles: Vec<String> = rendered.conversation(&earlier).into_iter().map(|m| m.role).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
    }
}
