//! The filter grammar of List, Walk and Subscribe, as containerd's clients write it.
//!
//! ```text
//! filters   = several texts, any of which must match; none, or an empty text, matches everything
//! text      = selector *("," selector)                 all selectors must match
//! selector  = path [operator value]                    without an operator: the field is present
//! path      = field *("." field)
//! field     = run of [A-Za-z0-9_] | quoted
//! operator  = "==" | "!=" | "~="                       ~= searches with a regular expression
//! value     = run of characters other than space and comma | quoted; behind ~= also /…/ and |…|
//! quoted    = "…" with the escapes of Go's string literals
//! ```
//!
//! White space between tokens is skipped. A field that is absent counts as empty for `!=` and `~=`. A regular
//! expression that does not compile is no error: it matches nothing.
//!
//! **Invariant:** parsing never recurses and a filter holds no reference to what it matches, so a hostile text costs no
//! more than its own length (and the regex crate's bounded compile).

use std::fmt;

use regex::Regex;

use crate::{Code, Coded};

/// A compiled regular expression may take this many bytes; larger ones match nothing.
const REGEX_MAX_BYTES: usize = 1 << 20;

/// A request may bring this many regular expressions; compiling one can take a millisecond.
const REGEX_MAX_COUNT: usize = 256;

const EXPECTED_OPERATOR: &str = r#"expected an operator ("=="|"!="|"~=")"#;

/// The text of a filter does not follow the grammar. The part before the place, the character there and the part
/// behind it are shown, as containerd does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    input: String,
    position: usize,
    message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, position, message } = self;
        let rest = input.get(*position..).unwrap_or_default();
        match rest.chars().next() {
            Some(at) => {
                let (before, after) = (&input[..*position], &rest[at.len_utf8()..]);
                write!(f, "filters: parse error: [{before} >|{at}|< {after}]: {message}")
            }
            None => write!(f, "filters: parse error: [{input}]: {message}"),
        }
    }
}

impl std::error::Error for ParseError {}

impl Coded for ParseError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

/// Parsed filters; the default matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Any of these; none matches everything.
    any: Vec<Vec<Selector>>,
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None` is an expression that does not compile.
    Matches(Option<Regex>),
}

impl Filters {
    /// Parses the filters of a request.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, ParseError> {
        let mut any = Vec::with_capacity(texts.len());
        let mut everything = false;
        let mut regexes = 0;
        for text in texts {
            let text = text.as_ref();
            if text.is_empty() {
                everything = true;
            } else {
                any.push(Parser { input: text, position: 0, regexes: &mut regexes }.selectors()?);
            }
        }
        if everything {
            any.clear();
        }
        Ok(Self { any })
    }

    /// Whether everything matches, whatever its fields are.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty()
    }

    /// Whether an object matches. `field` looks a field path up and says `None` if the field is absent; which fields
    /// exist, and whether an empty one counts as absent, is up to the kind of object.
    pub fn matches<V: AsRef<str>>(&self, field: impl Fn(&[&str]) -> Option<V>) -> bool {
        self.any.is_empty() || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(&field)))
    }
}

impl Selector {
    fn matches<V: AsRef<str>>(&self, field: &impl Fn(&[&str]) -> Option<V>) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = field(&path);
        let text = value.as_ref().map_or("", AsRef::as_ref);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(want) => value.is_some() && text == want,
            Test::NotEqual(want) => text != want,
            Test::Matches(regex) => regex.as_ref().is_some_and(|regex| regex.is_match(text)),
        }
    }
}

/// Looks `labels.<key>` and the like up: the rest of the path joined with dots is the key, so that both
/// `labels."a.b"` and `labels.a.b` find `a.b`.
pub fn label<'a>(labels: &'a crate::Labels, rest: &[&str]) -> Option<&'a str> {
    match rest {
        [key] => labels.get(*key),
        _ => labels.get(&rest.join(".")),
    }
    .map(String::as_str)
}

struct Parser<'a> {
    input: &'a str,
    position: usize,
    /// Regular expressions seen in the whole request.
    regexes: &'a mut usize,
}

impl Parser<'_> {
    fn selectors(mut self) -> Result<Vec<Selector>, ParseError> {
        let mut selectors = Vec::new();
        loop {
            selectors.push(self.selector()?);
            match self.peek() {
                None => return Ok(selectors),
                Some(',') => self.advance(','),
                Some(other) => return Err(self.error(self.position, format!("unexpected input: {other}"))),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, ParseError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.advance('.');
            path.push(self.field()?);
        }
        self.skip_spaces();
        match self.peek() {
            None | Some(',') => return Ok(Selector { path, test: Test::Present }),
            Some(quote @ ('/' | '|' | '"')) => return Err(self.misplaced(quote, EXPECTED_OPERATOR)),
            Some(_) => {}
        }
        let start = self.position;
        let test = match self.run(|c| matches!(c, '=' | '!' | '~')) {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => {
                let pattern = self.value(true)?;
                *self.regexes += 1;
                if *self.regexes > REGEX_MAX_COUNT {
                    return Err(self.error(start, format!("more than {REGEX_MAX_COUNT} regular expressions")));
                }
                let regex = regex::RegexBuilder::new(&pattern).size_limit(REGEX_MAX_BYTES).build();
                Test::Matches(regex.ok())
            }
            "" => return Err(self.error(start, EXPECTED_OPERATOR.to_owned())),
            other => {
                let message = format!("unsupported operator {other:?}");
                return Err(self.error(start, message));
            }
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, ParseError> {
        self.skip_spaces();
        let start = self.position;
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('/' | '|')) => Err(self.misplaced(quote, "invalid quote encountered")),
            _ => {
                let field = self.run(|c| c == '_' || c.is_ascii_alphanumeric()).to_owned();
                if field.is_empty() {
                    return Err(self.error(start, "expected field or quoted".to_owned()));
                }
                Ok(field)
            }
        }
    }

    fn value(&mut self, pattern: bool) -> Result<String, ParseError> {
        self.skip_spaces();
        let start = self.position;
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('/' | '|')) if pattern => self.quoted(quote),
            Some(quote @ ('/' | '|')) => Err(self.misplaced(quote, "invalid quote encountered")),
            // A separator or an operator cannot begin a value; inside one they are characters like others.
            Some('.' | ',' | '=' | '!' | '~') | None => Err(self.error(start, "expected value or quoted".to_owned())),
            Some(_) => {
                let value = self.run(|c| c != ',' && !c.is_whitespace() && !c.is_control()).to_owned();
                if value.is_empty() {
                    return Err(self.error(start, "expected value or quoted".to_owned()));
                }
                self.skip_spaces();
                Ok(value)
            }
        }
    }

    /// Reads a quoted text up to its closing quote and resolves its escapes.
    fn quoted(&mut self, quote: char) -> Result<String, ParseError> {
        let start = self.position;
        self.advance(quote);
        // Numeric escapes name bytes, which need not be UTF-8 each by itself.
        let mut bytes = Vec::new();
        loop {
            let Some(c) = self.peek().filter(|c| *c != '\n') else {
                return Err(self.error(start, "quoted literal not terminated".to_owned()));
            };
            self.advance(c);
            if c == quote {
                break;
            }
            if c == '\\' {
                self.escape(quote, &mut bytes).map_err(|message| self.error(start, message.to_owned()))?;
            } else {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        self.skip_spaces();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The error for a quoted text where none may stand; one that does not end is the more telling complaint.
    fn misplaced(&mut self, quote: char, message: &str) -> ParseError {
        let start = self.position;
        match self.quoted(quote) {
            Ok(_) => self.error(start, message.to_owned()),
            Err(error) => error,
        }
    }

    /// Resolves the escape behind a backslash.
    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), &'static str> {
        let Some(c) = self.peek() else { return Err("quoted literal not terminated") };
        self.advance(c);
        match c {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            '\\' => bytes.push(b'\\'),
            _ if c == quote => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            'x' => bytes.push(u8::try_from(self.digits(16, 2)?).unwrap_or(b'?')),
            'u' | 'U' => {
                let code = self.digits(16, if c == 'u' { 4 } else { 8 })?;
                if code > u32::from(char::MAX) {
                    return Err("unquoting failed: quote syntax error");
                }
                // Go encodes a surrogate as the replacement character.
                let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            '0'..='7' => {
                self.position -= 1;
                let code = self.digits(8, 3)?;
                bytes.push(u8::try_from(code).map_err(|_| "unquoting failed: quote syntax error")?);
            }
            _ => return Err("illegal escape sequence"),
        }
        Ok(())
    }

    /// Reads exactly `count` digits.
    fn digits(&mut self, base: u32, count: usize) -> Result<u32, &'static str> {
        let mut number = 0;
        for _ in 0..count {
            let digit = self.peek().and_then(|c| c.to_digit(base)).ok_or("illegal numeric escape sequence")?;
            self.position += 1;
            number = number * base + digit;
        }
        Ok(number)
    }

    fn run(&mut self, belongs: impl Fn(char) -> bool) -> &str {
        let start = self.position;
        let rest = &self.input[start..];
        self.position += rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        &self.input[start..self.position]
    }

    fn skip_spaces(&mut self) {
        self.run(char::is_whitespace);
    }

    fn peek(&self) -> Option<char> {
        self.input[self.position..].chars().next()
    }

    fn advance(&mut self, c: char) {
        self.position += c.len_utf8();
    }

    fn error(&self, position: usize, message: String) -> ParseError {
        ParseError { input: self.input.to_owned(), position, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Labels;

    struct Object {
        name: &'static str,
        labels: Labels,
    }

    impl Object {
        fn field(&self, path: &[&str]) -> Option<String> {
            match path {
                ["name"] => (!self.name.is_empty()).then(|| self.name.to_owned()),
                ["labels", rest @ ..] => label(&self.labels, rest).map(str::to_owned),
                _ => None,
            }
        }
    }

    fn sample() -> Vec<Object> {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        vec![
            Object { name: "alpha", labels: labels(&[("tier", "web"), ("io.example/zone", "a")]) },
            Object { name: "beta", labels: labels(&[("tier", "db"), ("say \"hi\" \\ ", "x, y")]) },
            Object { name: "", labels: labels(&[("path", "/tasks/exit")]) },
        ]
    }

    fn matching(filters: &[&str]) -> Vec<usize> {
        let filters = Filters::parse(filters).unwrap();
        let matches = |object: &Object| filters.matches(|path| object.field(path));
        sample().iter().enumerate().filter(|(_, object)| matches(object)).map(|(index, _)| index).collect()
    }

    #[test]
    fn what_matches() {
        let cases: &[(&[&str], &[usize])] = &[
            (&[], &[0, 1, 2]),
            (&[""], &[0, 1, 2]),
            (&["name==alpha", ""], &[0, 1, 2]),
            (&["name"], &[0, 1]),
            (&["nothing"], &[]),
            (&["labels.tier"], &[0, 1]),
            (&["name==alpha"], &[0]),
            (&["name==alpha", "name==beta"], &[0, 1]),
            (&["name==alpha,labels.tier==db"], &[]),
            (&["name==beta,labels.tier==db"], &[1]),
            (&["name!=alpha"], &[1, 2]),
            (&["name!=\"\""], &[0, 1]),
            (&["nothing!=x"], &[0, 1, 2]),
            (&["nothing==\"\""], &[]),
            (&["labels.\"io.example/zone\"==a"], &[0]),
            (&["labels.io.\"example/zone\""], &[0]),
            (&[r#"labels."say \"hi\" \\ "=="x, y""#], &[1]),
            (&["labels.path~=|^/tasks/|"], &[2]),
            (&["labels.path~=/^.tasks./"], &[2]),
            (&[r"labels.path~=/\/tasks\//"], &[2]),
            (&["labels.path~=exit$"], &[2]),
            (&["name~=[ab]"], &[0, 1]),
            (&["name~=^$"], &[2]),
            (&["name~=\"a{1,2}\",labels.tier"], &[0, 1]),
            (&["name~=[", "name==beta"], &[1]),
            (&[" name == beta , labels.tier "], &[1]),
            (&["name==alpha, labels.tier==web"], &[0]),
            (&[r#"name=="\x61lph\141""#], &[0]),
            (&[r#"name=="\u0061lpha""#], &[0]),
        ];
        for (filters, want) in cases {
            assert_eq!(matching(filters), *want, "{filters:?}");
        }
    }

    #[test]
    fn what_is_refused() {
        let cases = [
            ("labels.|foo|==x", "filters: parse error: [labels. >|||< foo|==x]: invalid quote encountered"),
            ("name==foo,", "filters: parse error: [name==foo,]: expected field or quoted"),
            ("labels.", "filters: parse error: [labels.]: expected field or quoted"),
            (",", "filters: parse error: [ >|,|< ]: expected field or quoted"),
            ("image~=,id?=?fbaq", "filters: parse error: [image~= >|,|< id?=?fbaq]: expected value or quoted"),
            ("labels.ns/key==v", "filters: parse error: [labels.ns >|/|< key==v]: quoted literal not terminated"),
            ("labels.key==/v", "filters: parse error: [labels.key== >|/|< v]: quoted literal not terminated"),
            ("labels.key==/v/", "filters: parse error: [labels.key== >|/|< v/]: invalid quote encountered"),
            ("name=foo", "filters: parse error: [name >|=|< foo]: unsupported operator \"=\""),
            ("name=!=foo", "filters: parse error: [name >|=|< !=foo]: unsupported operator \"=!=\""),
            ("name?", "filters: parse error: [name >|?|< ]: expected an operator (\"==\"|\"!=\"|\"~=\")"),
            ("name==\"a", "filters: parse error: [name== >|\"|< a]: quoted literal not terminated"),
            ("name==\"a\nb\"", "filters: parse error: [name== >|\"|< a\nb\"]: quoted literal not terminated"),
            (r#"name=="\q""#, r#"filters: parse error: [name== >|"|< \q"]: illegal escape sequence"#),
            (r#"name=="\x6""#, r#"filters: parse error: [name== >|"|< \x6"]: illegal numeric escape sequence"#),
            (r#"name=="\777""#, r#"filters: parse error: [name== >|"|< \777"]: unquoting failed: quote syntax error"#),
            ("name==foo bar", "filters: parse error: [name==foo  >|b|< ar]: unexpected input: b"),
            ("ä", "filters: parse error: [ >|ä|< ]: expected field or quoted"),
        ];
        for (text, want) in cases {
            let error = Filters::parse(&["name", text]).unwrap_err();
            assert_eq!(error.to_string(), want);
            assert_eq!(crate::render(&error), format!("{want}: invalid argument"));
        }
    }

    #[test]
    fn absurd_texts_are_survived() {
        for unit in ["a", ".", ",", "\"", "\\", "|", "=", "~=", "a~=(((", "a~=x{1000},", "ä", "\0", "a.", "a,"] {
            let text = unit.repeat(5000);
            if let Ok(filters) = Filters::parse(&[text]) {
                filters.matches(|_| Some("a"));
            }
        }
    }
}
