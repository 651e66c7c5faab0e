//! The keys of what is sent with each object besides its bytes: encryption, class, tags, metadata.

use super::Place;
use super::keys::{self, Scope};
use super::reader::Reader;
use super::value::shown;
use crate::codec::template::Template;

/// What is sent with each object besides its bytes, its type and its encoding.
#[derive(Clone, Debug, Default)]
pub struct ObjectSettings {
    /// Headers of each put, by their names in lower case.
    pub put_headers: Vec<(&'static str, String)>,
    /// Whether requests pay for a bucket whose requester pays.
    pub request_payer: bool,
    /// Tags, or blob index tags.
    pub tags: Vec<Labelled>,
    /// Metadata besides Ferry's own.
    pub metadata: Vec<Labelled>,
    /// Whether each put has the MD5 of its body.
    pub content_md5: bool,
    /// Whether a put replaces an object of its name, because the store does not know conditions. The object is then the
    /// same one, with the same bytes.
    pub overwrite: bool,
}

/// A tag or a piece of metadata.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// Its name.
    pub key: String,
    /// Its value: literals, and parts of the tag that are whole folders of `path`.
    pub value: Template,
}

/// The values of `sse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    Aes256,
    Kms,
    KmsDsse,
}

impl Encryption {
    fn word(self) -> &'static str {
        let mut words = keys::SSE.value.words.iter();
        words
            .find(|(_, sse)| *sse == self)
            .map_or("", |(word, _)| word)
    }
}

/// The storage classes of AWS:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html#API_PutObject_RequestSyntax>
const S3_CLASSES: &[&str] = &[
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
    "OUTPOSTS",
    "SNOW",
];
/// <https://cloud.google.com/storage/docs/storage-classes>
const GCS_CLASSES: &[&str] = &["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html, and the same numbers at
// https://learn.microsoft.com/azure/storage/blobs/storage-manage-find-blobs
const MAX_TAGS: usize = 10;
const MAX_TAG_KEY: usize = 128;
/// The most characters in the value of a tag.
pub(crate) const MAX_TAG_VALUE: usize = 256;
/// The most bytes of all metadata of an object, names and values, in S3:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>
const MAX_METADATA: usize = 2_048;

/// Whether a character may be in a tag: letters, digits, spaces and some punctuation; in Azure, ASCII only.
pub(crate) fn fits_tag(c: char) -> bool {
    c.is_ascii_alphanumeric() || " +-=._:/".contains(c)
}

/// Whether a character may be in a header's value.
pub(crate) fn fits_header(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic()
}

impl Reader<'_> {
    /// Reads the settings of objects in a store at `place`. `own_service`: whether requests go to the vendor's own
    /// service, whose classes are known. `path`: the template of folders.
    pub(super) fn object_settings(
        &mut self,
        place: Place,
        own_service: bool,
        path: Option<&Template>,
    ) -> ObjectSettings {
        let mut settings = ObjectSettings::default();
        if Scope::Stores.includes(place) {
            settings.content_md5 = self.flag(&keys::SEND_CONTENT_MD5) == Some(true);
            settings.metadata = self.metadata(place, path);
        }
        if matches!(place, Place::S3 | Place::Azure) {
            settings.tags = self.tags(path);
        }
        match place {
            Place::S3 => self.s3_settings(&mut settings, own_service),
            Place::Gcs => {
                let class = self.storage_class(GCS_CLASSES, own_service);
                let key = self.header_text(&keys::KMS_KEY);
                if let Some(key) = &key
                    && own_service
                    && !(key.starts_with("projects/") && key.contains("/cryptoKeys/"))
                {
                    self.problem(
                        &keys::KMS_KEY,
                        format!(
                            "{} is not a key's resource name: write projects/PROJECT/locations/LOCATION/keyRings/RING/\
                             cryptoKeys/KEY",
                            shown(key)
                        ),
                    );
                }
                settings.push("x-goog-storage-class", class);
                settings.push("x-goog-encryption-kms-key-name", key);
            }
            Place::Azure => {
                let tier = self.choice(&keys::ACCESS_TIER);
                let scope = self.header_text(&keys::ENCRYPTION_SCOPE);
                settings.push("x-ms-access-tier", tier.map(str::to_owned));
                settings.push("x-ms-encryption-scope", scope);
            }
            Place::Firehose | Place::File => {}
        }
        settings
    }

    fn s3_settings(&mut self, settings: &mut ObjectSettings, own_service: bool) {
        let sse = self.choice(&keys::SSE);
        let key = self.header_text(&keys::SSE_KMS_KEY_ID);
        let bucket_key = self.flag(&keys::SSE_BUCKET_KEY);
        let is_valid = !self.is_set(&keys::SSE) || sse.is_some();
        if key.is_some() && is_valid && !matches!(sse, Some(Encryption::Kms | Encryption::KmsDsse))
        {
            self.problem(
                &keys::SSE_KMS_KEY_ID,
                "needs sse aws:kms or aws:kms:dsse: set one of them, or remove this",
            );
        }
        if self.is_set(&keys::SSE_BUCKET_KEY) && is_valid && sse != Some(Encryption::Kms) {
            self.problem(
                &keys::SSE_BUCKET_KEY,
                "needs sse aws:kms, since no other encryption has bucket keys: set it, or remove this",
            );
        }
        let class = self.storage_class(S3_CLASSES, own_service);
        let acl = self.choice(&keys::CANNED_ACL);
        settings.request_payer = self.flag(&keys::REQUEST_PAYER) == Some(true);
        settings.overwrite = self.flag(&keys::CONDITIONAL_PUT) == Some(false);
        let sse = sse.map(|sse| sse.word().to_owned());
        settings.push("x-amz-server-side-encryption", sse);
        settings.push("x-amz-server-side-encryption-aws-kms-key-id", key);
        let bucket_key = bucket_key.map(|on| on.to_string());
        settings.push(
            "x-amz-server-side-encryption-bucket-key-enabled",
            bucket_key,
        );
        settings.push("x-amz-storage-class", class);
        settings.push("x-amz-acl", acl.map(str::to_owned));
    }

    fn storage_class(&mut self, known: &[&str], own_service: bool) -> Option<String> {
        let class = self.header_text(&keys::STORAGE_CLASS)?;
        if !own_service {
            // Other stores have classes of their own.
            return Some(class);
        }
        let found = known
            .iter()
            .find(|known| known.eq_ignore_ascii_case(&class));
        if found.is_none() {
            self.problem(
                &keys::STORAGE_CLASS,
                format!(
                    "{} is not a storage class: use {}",
                    shown(&class),
                    keys::one_of(known)
                ),
            );
        }
        found.map(|class| (*class).to_owned())
    }

    fn tags(&mut self, path: Option<&Template>) -> Vec<Labelled> {
        let key = &keys::OBJECT_TAGS;
        let tags = self.pairs(key, path);
        if tags.len() > MAX_TAGS {
            self.problem(
                key,
                format!(
                    "contains {} tags: an object has at most {MAX_TAGS}",
                    tags.len()
                ),
            );
        }
        for (tag, value) in &tags {
            let long =
                tag.key.chars().count() > MAX_TAG_KEY || value.chars().count() > MAX_TAG_VALUE;
            // Placeholders have braces, and what replaces them fits.
            let fits = |c: char| fits_tag(c) || "{}[]$".contains(c);
            if long || !tag.key.chars().all(fits_tag) || !value.chars().all(fits) {
                self.problem(
                    key,
                    format!(
                        "{} is not a tag: a key has at most {MAX_TAG_KEY} characters and a value {MAX_TAG_VALUE}, of letters, \
                         digits, spaces and + - = . _ : /",
                        shown(&format!("{}={value}", tag.key))
                    ),
                );
            } else if tag.key.to_ascii_lowercase().starts_with("aws:") {
                self.problem(
                    key,
                    format!(
                        "'{}': keys that begin with aws: are reserved by AWS",
                        tag.key
                    ),
                );
            }
        }
        tags.into_iter().map(|(tag, _)| tag).collect()
    }

    fn metadata(&mut self, place: Place, path: Option<&Template>) -> Vec<Labelled> {
        let key = &keys::OBJECT_METADATA;
        let metadata = self.pairs(key, path);
        let mut bytes = 0;
        for (entry, value) in &metadata {
            bytes += entry.key.len() + value.len();
            let first = entry.key.as_bytes().first();
            // Azure's must be identifiers; the others become headers.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let valid = match place {
                Place::Azure => {
                    entry.key.bytes().all(plain) && !first.is_some_and(u8::is_ascii_digit)
                }
                _ => entry.key.bytes().all(|b| plain(b) || b"-.".contains(&b)),
            };
            if !valid {
                let allowed = match place {
                    Place::Azure => "letters, digits and '_', and not a digit first",
                    _ => "letters, digits, '-', '.' and '_'",
                };
                self.problem(
                    key,
                    format!(
                        "{} is not a name of metadata: use {allowed}",
                        shown(&entry.key)
                    ),
                );
            } else if !value.chars().all(fits_header) {
                self.problem(
                    key,
                    format!("the value of '{}' is not ASCII text", entry.key),
                );
            } else if entry.key.eq_ignore_ascii_case("ferry_name") {
                self.problem(
                    key,
                    "'ferry_name' is Ferry's own, from which it tells its objects: use another name",
                );
            }
        }
        if bytes > MAX_METADATA {
            self.problem(
                key,
                format!("is {bytes} bytes long: metadata has at most {MAX_METADATA}"),
            );
        }
        metadata.into_iter().map(|(entry, _)| entry).collect()
    }

    /// Reads `key=value,key=value`, with each value as it is written, too.
    fn pairs(
        &mut self,
        key: &'static keys::Key<keys::Text>,
        path: Option<&Template>,
    ) -> Vec<(Labelled, String)> {
        let Some(text) = self.text(key) else {
            return Vec::new();
        };
        let mut pairs: Vec<(Labelled, String)> = Vec::new();
        for pair in text.split(',') {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) if !name.trim().is_empty() => (name.trim(), value.trim()),
                _ => {
                    let message = format!(
                        "{} is not a pair: write key=value,key=value",
                        shown(pair.trim())
                    );
                    self.problem(key, message);
                    continue;
                }
            };
            if pairs.iter().any(|(known, _)| known.key == name) {
                self.problem(key, format!("'{name}' comes twice: keep one of them"));
                continue;
            }
            // Parts of the tag are those of the folder.
            let rules = path.map(|path| path.rules().clone()).unwrap_or_default();
            let template = match Template::parse_with(value, false, rules) {
                Ok(template) => template,
                Err(error) => {
                    self.problem(key, error.to_string());
                    continue;
                }
            };
            if path.is_some_and(|path| !path.separates(&template)) {
                let message = format!(
                    "'{name}={value}' may differ within an object: it may only contain {{tag}} or {{tag[0]}}, and each must be \
                     a whole folder of path, such as path {{tag}}/%Y/%m/%d/%H"
                );
                self.problem(key, message);
                continue;
            }
            let labelled = Labelled {
                key: name.to_owned(),
                value: template,
            };
            pairs.push((labelled, value.to_owned()));
        }
        pairs
    }

    /// Reads a text that becomes a header.
    fn header_text(&mut self, key: &'static keys::Key<keys::Text>) -> Option<String> {
        let text = self.text(key)?;
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            let message = format!("{} contains characters that no header has", shown(&text));
            self.problem(key, message);
            return None;
        }
        Some(text)
    }
}

impl ObjectSettings {
    fn push(&mut self, header: &'static str, value: Option<String>) {
        self.put_headers.extend(value.map(|value| (header, value)));
    }
}
