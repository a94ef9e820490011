//! Enumerations of words: unit variants, each with the word for it in JSON, configuration, logs and metrics.

/// Declares an enumeration whose variants are words, as `Variant = "word",` each, with its documentation before it. It
/// has `ALL` and `as_str`.
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All of them, in their order.
            #[allow(dead_code, reason = "not every enumeration is listed")]
            $vis const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The word for it.
            $vis fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}
pub(crate) use words;
