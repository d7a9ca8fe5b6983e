//! Text with actions in double braces: as much of Go's template language as containerd's own tools use.
//!
//! ```text
//! --pid {{pid}}     a/{{ annotation "k" }}     lowerdir={{ overlay 0 2 -}} :more     {{/* a comment */}}
//! ```
//!
//! An action is a literal, or a name followed by literals. Pipelines, conditions, variables and fields are refused by
//! name. **Invariant:** what comes out has at most [`RENDERED_MAX_BYTES`], and nothing that an action returns is read as a
//! template again.

/// The most that a template may become.
pub const RENDERED_MAX_BYTES: usize = 1 << 20;

/// A literal behind the name in an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A string, `"quoted"` or in backquotes.
    Text(String),
    /// A number without a sign.
    Number(u64),
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// An action without an end.
    #[error("unclosed action in template {0:?}")]
    Unclosed(String),
    /// Something that is no literal and no name.
    #[error("unexpected {0:?} in a template's action")]
    Unexpected(String),
    /// An action without anything in it.
    #[error("missing value in a template's action")]
    Empty,
    /// It becomes too long.
    #[error("a template becomes longer than {RENDERED_MAX_BYTES} bytes")]
    TooLong,
}

/// Replaces each action of `text` by what `call` makes of its name and arguments.
pub fn render<E: From<TemplateError>>(
    text: &str,
    mut call: impl FnMut(&str, &[Argument]) -> Result<String, E>,
) -> Result<String, E> {
    let mut rendered = String::new();
    let mut rest = text;
    while let Some((before, action)) = rest.split_once("{{") {
        let (action, after) = action.split_at(end(action).ok_or_else(|| TemplateError::Unclosed(shorten(text)))?);
        let (mut before, mut action) = (before, action);
        let mut after = after.strip_prefix("}}").unwrap_or(after);
        if let Some(inner) = action.strip_prefix('-').filter(|inner| inner.starts_with(char::is_whitespace)) {
            (before, action) = (before.trim_end(), inner);
        }
        if let Some(inner) = action.strip_suffix('-').filter(|inner| inner.ends_with(char::is_whitespace)) {
            (action, after) = (inner, after.trim_start());
        }
        rendered.push_str(before);
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            rendered.push_str(&evaluate(action, &mut call)?);
        }
        if rendered.len() > RENDERED_MAX_BYTES {
            return Err(TemplateError::TooLong.into());
        }
        rest = after;
    }
    rendered.push_str(rest);
    if rendered.len() > RENDERED_MAX_BYTES { Err(TemplateError::TooLong.into()) } else { Ok(rendered) }
}

fn evaluate<E: From<TemplateError>>(
    action: &str,
    call: &mut impl FnMut(&str, &[Argument]) -> Result<String, E>,
) -> Result<String, E> {
    let name_bytes = action.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(action.len());
    let (name, rest) = action.split_at(name_bytes);
    if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        if rest.starts_with(|c: char| !c.is_whitespace()) {
            return Err(TemplateError::Unexpected(shorten(rest)).into());
        }
        return call(name, &arguments(rest)?);
    }
    match arguments(action)?.as_slice() {
        [] => Err(TemplateError::Empty.into()),
        [Argument::Text(text)] => Ok(text.clone()),
        [Argument::Number(number)] => Ok(number.to_string()),
        _ => Err(TemplateError::Unexpected(shorten(action)).into()),
    }
}

/// Where the action ends: braces within a string are the string's.
fn end(action: &str) -> Option<usize> {
    let bytes = action.as_bytes();
    let mut quote = None;
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        match (quote, byte) {
            (None, b'}') if bytes.get(index + 1) == Some(&b'}') => return Some(index),
            (None, b'"' | b'`') => quote = Some(*byte),
            (Some(b'"'), b'\\') => index += 1,
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
        index += 1;
    }
    None
}

fn arguments(text: &str) -> Result<Vec<Argument>, TemplateError> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let unexpected = || TemplateError::Unexpected(shorten(rest));
        let (argument, after) = match first {
            '"' => quoted(rest).ok_or_else(unexpected)?,
            '`' => {
                let (inner, after) = rest[1..].split_once('`').ok_or_else(unexpected)?;
                (Argument::Text(inner.to_owned()), after)
            }
            '0'..='9' => {
                let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let (number, after) = rest.split_at(digits);
                (Argument::Number(number.parse().map_err(|_| unexpected())?), after)
            }
            _ => return Err(unexpected()),
        };
        if after.starts_with(|c: char| !c.is_whitespace()) {
            return Err(unexpected());
        }
        found.push(argument);
        rest = after.trim_start();
    }
    Ok(found)
}

/// A string in double quotes at the start of `text`, and what is behind it.
fn quoted(text: &str) -> Option<(Argument, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((Argument::Text(value), &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other @ ('"' | '\\') => other,
                _ => return None,
            }),
            other => value.push(other),
        }
    }
    None
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, TemplateError> {
        render(text, |name, arguments| Ok(format!("<{name}{arguments:?}>")))
    }

    #[test]
    fn actions() {
        for (text, want) in [
            ("", ""),
            ("a } b }} c", "a } b }} c"),
            ("{{pid}}", "<pid[]>"),
            ("a {{ mount 1 }}/up", "a <mount[Number(1)]>/up"),
            ("{{overlay 10 2}}", "<overlay[Number(10), Number(2)]>"),
            ("{{ annotation \"k }}\\\"\" }}x", "<annotation[Text(\"k }}\\\"\")]>x"),
            ("{{ annotation `a\\b` }}", "<annotation[Text(\"a\\\\b\")]>"),
            ("a  {{- id -}}  b{{/* none */}}", "a<id[]>b"),
            ("{{ \"{{pid}}\" }}{{ 7 }}", "{{pid}}7"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn refusals() {
        for text in [
            "{{",
            "{{ pid",
            "{{ \"}}",
            "{{}}",
            "{{ .Field }}",
            "{{ if x }}{{ end }}x{{ $v }}",
            "{{ id | len }}",
            "{{ mount 99999999999999999999 }}",
            "{{ mount -1 }}",
            "{{ mount 1a }}",
            "{{ a.b }}",
            "{{ \"\\x41\" }}",
        ] {
            assert!(shown(text).is_err(), "{text}: {:?}", shown(text));
        }
        let much = "{{ x }}".repeat(3000);
        let grown = render(&much, |_, _| Ok::<_, TemplateError>("y".repeat(1000)));
        assert_eq!(grown, Err(TemplateError::TooLong));
    }
}
