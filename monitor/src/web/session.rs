//! Tokens that open the page: those of links, each good once and for minutes, and those of the browsers' cookies, which
//! links are exchanged for. Pure: `now` comes in. All are gone with the daemon.
//!
//! Only tags of tokens are kept, and compared in constant time.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    error::Unspecified,
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};

/// For so long a link is good.
pub(super) const LINK_LIFE: Duration = Duration::from_secs(5 * 60);
/// For so long a browser sees the page after its link was opened.
pub(super) const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Links that are good at a time; the oldest one makes room.
const LINKS_MAX: usize = 16;
/// Browsers at a time, likewise.
const SESSIONS_MAX: usize = 64;
/// Bytes of a token.
const TOKEN_BYTES: usize = 32;

/// All links and sessions that are good.
#[derive(Debug)]
pub(super) struct Sessions {
    key: hmac::Key,
    random: SystemRandom,
    links: Vec<Grant>,
    sessions: Vec<Grant>,
}

#[derive(Debug)]
struct Grant {
    tag: hmac::Tag,
    ends: Instant,
}

impl Sessions {
    /// None so far.
    pub(super) fn new() -> Self {
        // Tokens are as random as a key: what is kept of them need only tell nothing of them.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"flatline web");
        Self { key, random: SystemRandom::new(), links: Vec::new(), sessions: Vec::new() }
    }

    /// A token for a link, good from `now` on for [`LINK_LIFE`].
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub(super) fn link(&mut self, now: Instant) -> Result<String, Unspecified> {
        let (token, tag) = self.token()?;
        add(&mut self.links, LINKS_MAX, Grant { tag, ends: now + LINK_LIFE }, now);
        Ok(token)
    }

    /// Takes a link's token, which is no longer good then, for the token of a new session; `None` where it isn't good.
    pub(super) fn open(&mut self, link: &str, now: Instant) -> Option<String> {
        let place = self.find(&self.links, link, now)?;
        self.links.remove(place);
        let (token, tag) = self.token().ok()?;
        add(&mut self.sessions, SESSIONS_MAX, Grant { tag, ends: now + SESSION_LIFE }, now);
        Some(token)
    }

    /// Whether this is a session's token.
    pub(super) fn is_open(&self, session: &str, now: Instant) -> bool {
        self.find(&self.sessions, session, now).is_some()
    }

    fn token(&self) -> Result<(String, hmac::Tag), Unspecified> {
        let mut bytes = [0; TOKEN_BYTES];
        self.random.fill(&mut bytes)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let tag = hmac::sign(&self.key, token.as_bytes());
        Ok((token, tag))
    }

    /// All are compared, so that the time says nothing of which one it is either.
    fn find(&self, grants: &[Grant], token: &str, now: Instant) -> Option<usize> {
        grants.iter().enumerate().fold(None, |found, (place, grant)| {
            let is_it = hmac::verify(&self.key, token.as_bytes(), grant.tag.as_ref()).is_ok();
            if is_it && now < grant.ends { Some(place) } else { found }
        })
    }
}

fn add(grants: &mut Vec<Grant>, most: usize, grant: Grant, now: Instant) {
    grants.retain(|grant| now < grant.ends);
    if grants.len() == most {
        grants.remove(0);
    }
    grants.push(grant);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_one_session_while_it_is_good_and_a_session_ends() {
        let now = Instant::now();
        let mut sessions = Sessions::new();
        let link = sessions.link(now).unwrap();
        assert_eq!(link.len(), 43, "256 bits");
        assert!(!sessions.is_open(&link, now), "a link is no session");
        let session = sessions.open(&link, now + LINK_LIFE / 2).expect("good");
        assert_ne!(session, link);
        assert_eq!(sessions.open(&link, now), None, "once");
        assert_eq!(sessions.open(&session, now), None, "a session is no link");
        assert!(sessions.is_open(&session, now + SESSION_LIFE));
        assert!(!sessions.is_open(&session, now + LINK_LIFE / 2 + SESSION_LIFE));
        assert!(!sessions.is_open("", now) && !sessions.is_open(&session[1..], now));
        let late = sessions.link(now).unwrap();
        assert_eq!(sessions.open(&late, now + LINK_LIFE), None, "late");
    }

    #[test]
    fn there_are_so_many_at_most_and_the_oldest_makes_room() {
        let now = Instant::now();
        let mut sessions = Sessions::new();
        let links: Vec<_> = (0..=LINKS_MAX).map(|_| sessions.link(now).unwrap()).collect();
        assert_eq!(sessions.open(&links[0], now), None);
        let mut open = |_| {
            let link = sessions.link(now).unwrap();
            sessions.open(&link, now).expect("good")
        };
        let opened: Vec<_> = (0..=SESSIONS_MAX).map(&mut open).collect();
        assert!(!sessions.is_open(&opened[0], now) && sessions.is_open(&opened[1], now));
    }
}
