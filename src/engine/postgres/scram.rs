//! SCRAM-SHA-256 (RFC 5802, RFC 7677) in as many rounds as the server wants, within a limit of time. The errors are those
//! of libpq.

use std::io;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

type Key = [u8; 32];

/// Some milliseconds. Whoever does not want the result any more has the thread back after so many rounds.
const SLICE: u32 = 5_000;

/// A login that has begun.
pub(super) struct Scram<'a> {
    /// Empty for PostgreSQL, which takes it from the startup message.
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    /// How the login is bound to its channel: "gs2-header" in the RFC.
    pub(super) header: &'static str,
    /// What the login is bound to.
    pub(super) end_point: &'a [u8],
    pub(super) nonce: String,
}

/// The answer to the server's challenge.
pub(super) struct Answer {
    pub(super) message: String,
    /// What the server must answer to that.
    signature: Hmac<Sha256>,
}

/// As many random bytes as in libpq.
pub(super) fn nonce() -> io::Result<String> {
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce)?;
    Ok(BASE64.encode(nonce))
}

impl Scram<'_> {
    pub(super) fn first_message(&self) -> String {
        self.header.to_owned() + &self.first_message_bare()
    }

    fn first_message_bare(&self) -> String {
        format!("n={},r={}", self.user, self.nonce)
    }

    /// Hashes the password as the server wants it, but for no longer than `limit`.
    ///
    /// Gives way again and again, so that dropping this ends it.
    pub(super) async fn answer(&self, challenge: &str, limit: Duration) -> io::Result<Answer> {
        let attributes: Vec<&str> = challenge.split(',').collect();
        let [nonce, salt, rounds] = attributes[..] else { return Err(malformed("three attributes are expected")) };
        let nonce = nonce.strip_prefix("r=").ok_or_else(|| malformed("attribute \"r\" expected"))?;
        if !nonce.starts_with(&self.nonce) {
            return Err(invalid("invalid SCRAM response (nonce mismatch)"));
        }
        let salt = salt.strip_prefix("s=").ok_or_else(|| malformed("attribute \"s\" expected"))?;
        let salt = BASE64.decode(salt).map_err(|_| malformed("invalid salt"))?;
        let rounds = rounds.strip_prefix("i=").and_then(|rounds| rounds.parse().ok()).filter(|&rounds| rounds > 0);
        let rounds = rounds.ok_or_else(|| malformed("invalid iteration count"))?;

        let salted = salted_password(self.password, &salt, rounds, limit).await?;
        let client_key = sign(&salted, "Client Key");
        let binding = BASE64.encode([self.header.as_bytes(), self.end_point].concat());
        let message = format!("c={binding},r={nonce}");
        let signed = format!("{},{challenge},{message}", self.first_message_bare());
        let mut proof = client_key;
        xor(&mut proof, &sign(&Sha256::digest(client_key).into(), &signed));
        let signature = keyed(&sign(&salted, "Server Key")).chain_update(signed);
        Ok(Answer { message: format!("{message},p={}", BASE64.encode(proof)), signature })
    }
}

impl Answer {
    /// Fails if the server does not know the password either.
    pub(super) fn check(self, final_message: &str) -> io::Result<()> {
        if let Some(error) = final_message.strip_prefix("e=") {
            return Err(invalid(&format!("error received from server in SCRAM exchange: {error}")));
        }
        let signature = final_message.strip_prefix("v=").ok_or_else(|| malformed("attribute \"v\" expected"))?;
        let signature = BASE64.decode(signature).map_err(|_| malformed("invalid server signature"))?;
        // In a time that does not depend on where they differ.
        self.signature.verify_slice(&signature).map_err(|_| invalid("incorrect server signature"))
    }
}

fn malformed(what: &str) -> io::Error {
    invalid(&format!("malformed SCRAM message ({what})"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Hi() of the RFC, which is PBKDF2.
async fn salted_password(password: &str, salt: &[u8], rounds: u32, limit: Duration) -> io::Result<Key> {
    let began = Instant::now();
    // As PostgreSQL does: a password that is no text of this kind counts as it is.
    let prepared = stringprep::saslprep(password).unwrap_or(password.into());
    let keyed = keyed(prepared.as_bytes());
    let mut last = Key::from(keyed.clone().chain_update(salt).chain_update([0, 0, 0, 1]).finalize().into_bytes());
    let mut salted = last;
    for round in 1..rounds {
        last = keyed.clone().chain_update(last).finalize().into_bytes().into();
        xor(&mut salted, &last);
        if round % SLICE == 0 {
            if began.elapsed() > limit {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the server asks for {rounds} rounds of SCRAM-SHA-256, which take more than {limit:?}, half of connect_timeout"
                    ),
                ));
            }
            tokio::task::yield_now().await;
        }
    }
    Ok(salted)
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key may have any length")
}

fn sign(key: &Key, text: &str) -> Key {
    keyed(key).chain_update(text).finalize().into_bytes().into()
}

fn xor(bytes: &mut Key, others: &Key) {
    bytes.iter_mut().zip(others).for_each(|(byte, other)| *byte ^= other);
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;
    use crate::engine::server::steps;
    use crate::support::{HANG, poll_once};

    const LIMIT: Duration = Duration::from_secs(3600);

    fn scram(nonce: &str) -> Scram<'static> {
        Scram { user: "user", password: "pencil", header: "n,,", end_point: b"", nonce: nonce.into() }
    }

    #[tokio::test]
    async fn it_answers_as_in_the_example_of_the_rfc() {
        let scram = scram("rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first_message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let answer = || async { scram.answer(challenge, LIMIT).await.unwrap() };
        assert_eq!(
            answer().await.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        answer().await.check("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        for (wrong, reason) in [
            ("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=", "invalid server signature"),
            ("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "incorrect server signature"),
            ("v=", "incorrect server signature"),
            ("e=other-error", "exchange: other-error"),
            ("", "\"v\" expected"),
        ] {
            let error = answer().await.check(wrong).unwrap_err().to_string();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }

    #[tokio::test]
    async fn a_challenge_that_is_none_gets_no_answer() {
        for (challenge, reason) in [
            ("", "three attributes"),
            ("r=mine+,s=c2FsdA==,i=1,m=more", "three attributes"),
            ("m=more,r=mine+,s=c2FsdA==", "\"r\" expected"),
            ("r=yours,s=c2FsdA==,i=1", "nonce mismatch"),
            ("r=min,s=c2FsdA==,i=1", "nonce mismatch"),
            ("r=mine+,s=c2FsdA,i=1", "invalid salt"),
            ("r=mine+,s=c2FsdA==,i=0", "invalid iteration count"),
            ("r=mine+,s=c2FsdA==,i=-1", "invalid iteration count"),
            ("r=mine+,s=c2FsdA==,i=4294967296", "invalid iteration count"),
        ] {
            let error = scram("mine").answer(challenge, LIMIT).await.err().expect(challenge).to_string();
            assert!(error.contains(reason), "{challenge}: {error}");
        }
    }

    const ENDLESS: &str = "r=mine+,s=c2FsdA==,i=4294967295";

    #[tokio::test]
    async fn the_rounds_have_a_limit_of_time() {
        let error = scram("mine").answer(ENDLESS, Duration::ZERO).await.err().unwrap().to_string();
        assert!(error.contains("4294967295 rounds"), "{error}");
    }

    /// Nobody waits for the rest of the rounds, and no thread either.
    #[tokio::test]
    async fn rounds_that_nobody_wants_any_more_end() {
        let (kept, is_dropped) = oneshot::channel::<()>();
        let work = async move {
            drop(scram("mine").answer(ENDLESS, LIMIT).await);
            drop(kept);
        };
        let mut running = Box::pin(steps::run("rounds".into(), work));
        assert!(!poll_once(running.as_mut()).await);
        drop(running);
        assert!(timeout(HANG, is_dropped).await.expect("they go on").is_err());
    }
}
