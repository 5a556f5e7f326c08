//! Fields that take one word of a list.

/// An enum whose values are written as words, matched exactly; the error lists them.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub($($vis:tt)+) enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $word:literal, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Deserialize)]
        #[serde(try_from = "String")]
        pub($($vis)+) enum $name {
            $( $(#[$variant_meta])* $variant, )+
        }

        impl $name {
            const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $( Self::$variant => $word, )+
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                match text.as_str() {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err($crate::policy::api::words::unknown(Self::WORDS, &text)),
                }
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": Self::WORDS })
            }
        }
    };
}

pub(in crate::policy) use words;

/// Why a text is none of the words. It is not repeated, but for a hint on letter case: what stands
/// at a wrong place may be a secret.
pub(in crate::policy) fn unknown(words: &[&str], text: &str) -> String {
    if let Some(word) = words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
        return format!("write it as `{word}`");
    }
    let list = words.join("`, `");
    match words {
        [_] => format!("expected `{list}`"),
        _ => format!("expected one of `{list}`"),
    }
}
