//! A key in a token, through the module of the token's maker (PKCS #11 3.0 §2.3: `CKK_EC_EDWARDS`, `CKM_EDDSA`).
//!
//! A session that has ended, as when a token was taken out and put back, is opened again, once for each signature.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use fleetkey_identity::{CaKey, SigningFailed};

use super::{Pkcs11Config, TokenError};

/// Ed25519 as a curve's name (PKCS #11 3.0 §2.3.5): a PrintableString, which every token knows.
const ED25519: [u8; 14] = *b"\x13\x0cedwards25519";

/// An Ed25519 key that stays in its token.
pub(super) struct TokenKey {
    config: Pkcs11Config,
    label: String,
    public_key: [u8; 32],
    opened: Mutex<Opened>,
}

/// A session that is logged in, and the key in it.
struct Opened {
    session: Session,
    private: ObjectHandle,
}

impl TokenKey {
    pub(super) fn open(config: &Pkcs11Config, label: &str) -> Result<Self, TokenError> {
        let session = session(config, Access::Read)?;
        Self::find(config, label, session)
    }

    pub(super) fn generate(config: &Pkcs11Config, label: &str) -> Result<Self, TokenError> {
        let session = session(config, Access::Write)?;
        if !find(&session, ObjectClass::PRIVATE_KEY, label)?.is_empty() {
            return Err(TokenError::Taken { label: label.to_owned() });
        }
        let name = || Attribute::Label(label.as_bytes().to_vec());
        let public = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(ED25519.to_vec()),
            name(),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            name(),
        ];
        session
            .generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)
            .map_err(failed("make a key in the token"))?;
        Self::find(config, label, session)
    }

    fn find(config: &Pkcs11Config, label: &str, session: Session) -> Result<Self, TokenError> {
        let private = one(&session, ObjectClass::PRIVATE_KEY, label)?;
        let public = one(&session, ObjectClass::PUBLIC_KEY, label)?;
        let point = session
            .get_attributes(public, &[AttributeType::EcPoint])
            .map_err(failed("read the public key"))?;
        let point = point.into_iter().find_map(|attribute| {
            let Attribute::EcPoint(point) = attribute else { return None };
            public_key(&point)
        });
        let public_key = point.ok_or_else(|| TokenError::Module {
            doing: "read the public key",
            why: "it is no Ed25519 key".to_owned(),
        })?;
        Ok(Self {
            config: config.clone(),
            label: label.to_owned(),
            public_key,
            opened: Mutex::new(Opened { session, private }),
        })
    }

    fn reopen(&self) -> Result<Opened, TokenError> {
        let Self { public_key, opened, label, .. } = Self::open(&self.config, &self.label)?;
        // Another token of the same name may have been put in: what its key signs nobody would take.
        if public_key != self.public_key {
            return Err(TokenError::OtherKey { label });
        }
        Ok(opened.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CaKey for TokenKey {
    fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SigningFailed> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let signed = match opened.sign(message) {
            Err(_) => {
                *opened = self.reopen().map_err(|error| SigningFailed { why: error.to_string() })?;
                opened.sign(message)
            }
            signed => signed,
        };
        let signature = signed.map_err(|error| SigningFailed { why: error.to_string() })?;
        let length = signature.len();
        signature.try_into().map_err(|_| SigningFailed { why: format!("a signature of {length} bytes") })
    }
}

impl Opened {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let pure = EddsaParams::new(EddsaSignatureScheme::Ed25519);
        self.session.sign(&Mechanism::Eddsa(pure), self.private, message)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({:?} in {:?})", self.label, self.config.token)
    }
}

#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

/// A session at the token, logged in.
fn session(config: &Pkcs11Config, access: Access) -> Result<Session, TokenError> {
    let module = module(&config.module)?;
    let slots = module.get_slots_with_token().map_err(failed("look for tokens"))?;
    let is_it = |slot: &cryptoki::slot::Slot| {
        module.get_token_info(*slot).is_ok_and(|token| token.label().trim_end() == config.token)
    };
    let slot =
        slots.into_iter().find(is_it).ok_or_else(|| TokenError::NoToken { label: config.token.clone() })?;
    let opened = match access {
        Access::Read => module.open_ro_session(slot),
        Access::Write => module.open_rw_session(slot),
    };
    let session = opened.map_err(failed("open the token"))?;
    let pin = AuthPin::new(config.pin()?.as_str().into());
    match session.login(UserType::User, Some(&pin)) {
        // A login is the process's, not the session's.
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
        Err(error) => Err(failed("log in to the token")(error)),
    }
}

/// A module is initialised once in a process, and stays.
fn module(path: &Path) -> Result<Pkcs11, TokenError> {
    static MODULES: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let module = Pkcs11::new(path).map_err(failed("load the PKCS #11 module"))?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(failed("initialise the PKCS #11 module")(error)),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

fn one(session: &Session, class: ObjectClass, label: &str) -> Result<ObjectHandle, TokenError> {
    let found = find(session, class, label)?;
    match found.as_slice() {
        [one] => Ok(*one),
        several => Err(TokenError::NotOneKey { label: label.to_owned(), count: several.len() }),
    }
}

fn find(session: &Session, class: ObjectClass, label: &str) -> Result<Vec<ObjectHandle>, TokenError> {
    let wanted = [
        Attribute::Class(class),
        Attribute::KeyType(KeyType::EC_EDWARDS),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    session.find_objects(&wanted).map_err(failed("look for the key"))
}

/// The point, as it is or in an OCTET STRING: tokens differ.
fn public_key(point: &[u8]) -> Option<[u8; 32]> {
    point.strip_prefix(&[0x04, 0x20]).unwrap_or(point).try_into().ok()
}

fn failed(doing: &'static str) -> impl FnOnce(Error) -> TokenError {
    move |error| {
        // The return value says enough; the library's words on it fill a page.
        let why = if let Error::Pkcs11(value, _) = &error { format!("{value:?}") } else { error.to_string() };
        TokenError::Module { doing, why }
    }
}
