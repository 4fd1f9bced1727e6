//! Enrolment over Secure Transport (RFC 7030): the server that devices ask for their certificates.
//!
//! | path, under `/.well-known/est` | method | who asks | what comes back |
//! | --- | --- | --- | --- |
//! | `/cacerts` | GET | anybody | the fleet's CA certificates |
//! | `/csrattrs` | GET | anybody | what a signing request must hold: an Ed25519 key |
//! | `/simpleenroll` | POST | a claim as HTTP user and password, or a manufacturer's certificate | a certificate, or 202: ask again |
//! | `/simplereenroll` | POST | a device, by the certificate that it has | a certificate with a later end |
//! | `/crl` | GET | anybody | the revocation list |
//! | `/fleet` | GET | anybody | where the broker is, and the coordinator's certificate, as JSON |
//!
//! Connections are bounded in number, time and size before anything is known of who is there. Leaves to a
//! [`Registrar`] who is let in, and what is stored; deliberately absent: keys made for devices (`serverkeygen`), which
//! would have to travel.

mod clients;
mod credentials;
mod manufacturers;
mod refusals;
mod registrar;
mod routes;
mod server;

pub use credentials::read_basic;
pub use manufacturers::{BadManufacturer, IdFrom, Manufacturer, Manufacturers, Mapped};
pub use registrar::{About, Answer, Applicant, Refusal, Registrar, Way};
pub use routes::{MAX_BODY_BYTES, read_request, router};
pub use server::{EstServer, Limits, ServerError};
