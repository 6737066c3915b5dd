//! What is a prefix made of? A software bill of materials in CycloneDX 1.5, and the licences.
//!
//! The bill lists upstream with its pins, each patch with its digest, the crates in the static Rust library, and the system
//! libraries that the loader finds on the machine that builds. The bill contains neither the time nor a path of the build, so
//! two builds of the same inputs have the same bill.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use duct::Expression;
use fs_err as fs;
use serde::Serialize;

use crate::build::manifest::{self, Manifest};
use crate::host::distribution::Distribution;
use crate::host::layout;
use crate::source::release::Release;

/// Where the bill is in a prefix.
pub const PATH: &str = "share/guacd-uncapped/sbom.cdx.json";

/// Where the licences are in a prefix.
const LICENSES: &str = "share/guacd-uncapped/licenses";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bill {
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
}

#[derive(Serialize)]
struct Metadata {
    tools: Tools,
    component: Component,
}

#[derive(Serialize)]
struct Tools {
    components: Vec<Component>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "kebab-case")]
enum Type {
    Application,
    File,
    #[default]
    Library,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Component {
    #[serde(rename = "type")]
    kind: Type,
    #[serde(rename = "bom-ref")]
    reference: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<License>,
    #[serde(skip_serializing_if = "String::is_empty")]
    purl: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_references: Vec<ExternalReference>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

/// A URL, and the digests of the file that it serves.
#[derive(Serialize)]
struct ExternalReference {
    #[serde(rename = "type")]
    kind: &'static str,
    url: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
}

#[derive(Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Serialize)]
struct License {
    expression: &'static str,
}

#[derive(Serialize)]
struct Property {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    #[serde(rename = "ref")]
    reference: String,
    depends_on: Vec<String>,
}

impl Hash {
    fn sha256(digest: &str) -> Hash {
        Hash { alg: "SHA-256", content: digest.to_owned() }
    }
}

impl Component {
    fn new(kind: Type, name: &str, version: &str) -> Component {
        let reference = if version.is_empty() { name.to_owned() } else { format!("{name}@{version}") };
        Component {
            kind,
            reference,
            name: name.to_owned(),
            version: version.to_owned(),
            ..Component::default()
        }
    }

    fn sha256(mut self, digest: &str) -> Component {
        self.hashes.push(Hash::sha256(digest));
        self
    }

    fn license(mut self, expression: &'static str) -> Component {
        self.licenses.push(License { expression });
        self
    }

    fn property(mut self, name: &str, value: &str) -> Component {
        self.properties.push(Property { name: format!("guacd-uncapped:{name}"), value: value.to_owned() });
        self
    }
}

/// Writes the bill of the prefix that `manifest` describes into the prefix, which is `staged`.
pub fn save(manifest: &Manifest, release: &Release, crates: &BTreeSet<String>, staged: &Path) -> Result<()> {
    let mut text = serde_json::to_string_pretty(&bill(manifest, release, crates, system_libraries(staged)?))?;
    text.push('\n');
    manifest::write(&staged.join(PATH), &text)
}

/// Copies the licences and notices of this project, and of upstream from its tree `source`, into the prefix, which is `staged`.
pub fn save_licenses(source: &Path, staged: &Path) -> Result<()> {
    for (name, tree) in [("guacd-uncapped", layout::root()), ("guacamole-server", source.to_owned())] {
        for file in ["LICENSE", "NOTICE"] {
            let text = fs::read_to_string(tree.join(file))?;
            manifest::write(&staged.join(LICENSES).join(name).join(file), &text)?;
        }
    }
    Ok(())
}

fn bill(manifest: &Manifest, release: &Release, crates: &BTreeSet<String>, system: Vec<Component>) -> Bill {
    let version = &manifest.release;
    let own = env!("CARGO_PKG_VERSION");
    // All pins of the source, as each stands for the same commit. Which one was used makes no difference.
    let downloads = release.origins.iter().map(|origin| ExternalReference {
        kind: "distribution",
        url: origin.url.clone(),
        hashes: vec![Hash::sha256(&origin.sha256)],
    });
    let repository = ExternalReference { kind: "vcs", url: release.git.clone(), hashes: Vec::new() };
    let upstream = Component {
        purl: format!("pkg:github/apache/guacamole-server@{}", release.upstream_name()),
        external_references: downloads.chain([repository]).collect(),
        ..Component::new(Type::Application, "guacamole-server", version)
    }
    .license("Apache-2.0")
    .property("commit", &manifest.commit)
    .property("tree", &release.tree);
    let mut components = vec![upstream];
    for patch in &manifest.patches {
        let component =
            Component::new(Type::File, &patch.name, "").sha256(&patch.sha256).license("Apache-2.0");
        components.push(component.property("kind", "patch to guacamole-server"));
    }
    if let Some(digest) = &manifest.tls_rs {
        let tls_rs = Component {
            description: "thread-local storage, linked into libguac.so as a static library".to_owned(),
            ..Component::new(Type::Library, "tls-rs", own)
        };
        let dependencies: Vec<&str> =
            crates.iter().map(String::as_str).filter(|name| !name.starts_with("tls-rs ")).collect();
        let list = if dependencies.is_empty() { "none".to_owned() } else { dependencies.join(", ") };
        components.push(tls_rs.sha256(digest).license("Apache-2.0").property("crates that it links", &list));
        for dependency in dependencies {
            let (name, version) = dependency.split_once(" v").unwrap_or((dependency, ""));
            let mut component = Component::new(Type::Library, name, version);
            component.purl = format!("pkg:cargo/{name}@{version}");
            components.push(component);
        }
        let rustc = manifest.rustc.split_whitespace().nth(1).unwrap_or_default();
        let core = Component::new(Type::Library, "rust-core", rustc).license("MIT OR Apache-2.0");
        components.push(core.property("compiler", &manifest.rustc));
    }
    components.extend(system);

    let mut guacd = Component::new(Type::Application, "guacd-uncapped", &format!("{version}+{own}"));
    guacd.description = format!("guacd {version}, {}", manifest.variant);
    let guacd = guacd
        .license("Apache-2.0")
        .property("variant", &manifest.variant)
        .property("protocols", &manifest.protocols.join(" "))
        .property("c compiler", &manifest.compiler);
    let dependency = Dependency {
        reference: guacd.reference.clone(),
        depends_on: components.iter().map(|component| component.reference.clone()).collect(),
    };
    // The digest of the inputs, as a UUID of version 8, which RFC 9562 leaves to applications.
    let digest = &manifest.digest;
    let uuid =
        [&digest[..8], &digest[8..12], &format!("8{}", &digest[13..16]), &format!("8{}", &digest[17..20])];
    Bill {
        bom_format: "CycloneDX",
        spec_version: "1.5",
        serial_number: format!("urn:uuid:{}-{}", uuid.join("-"), &digest[20..32]),
        version: 1,
        metadata: Metadata {
            tools: Tools { components: vec![Component::new(Type::Application, "xtask", own)] },
            component: guacd,
        },
        components,
        dependencies: vec![dependency],
    }
}

/// The Debian packages of the libraries that the loader finds for the programs in `prefix`. Where a library is in no package,
/// the library itself is listed.
fn system_libraries(prefix: &Path) -> Result<Vec<Component>> {
    let libraries = loaded(prefix)?;
    let owners = owners(&libraries);
    let versions = versions(owners.values());
    let Distribution { id, version: number, .. } = Distribution::this();
    let mut packages: BTreeMap<&str, Component> = BTreeMap::new();
    for library in &libraries {
        let file = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let owner = owners.get(library).and_then(|owner| Some((owner, versions.get(owner)?)));
        let Some((owner, version)) = owner else {
            let component = Component::new(Type::Library, &file, "");
            packages
                .insert(library.to_str().unwrap_or_default(), component.property("kind", "system library"));
            continue;
        };
        let (name, arch) = owner.split_once(':').unwrap_or((owner, ""));
        let component = packages.entry(owner).or_insert_with(|| Component {
            purl: format!(
                "pkg:deb/{id}/{}@{}?arch={arch}&distro={id}-{number}",
                encoded(name),
                encoded(version)
            ),
            ..Component::new(Type::Library, name, version).property("kind", "system library")
        });
        component.properties.push(Property { name: "guacd-uncapped:file".to_owned(), value: file });
    }
    Ok(packages.into_values().collect())
}

/// The shared libraries outside of `prefix` that its programs and libraries are linked with, directly or not.
fn loaded(prefix: &Path) -> Result<BTreeSet<PathBuf>> {
    let lib = prefix.join("lib");
    let mut files = vec![prefix.join("sbin/guacd")];
    for entry in fs::read_dir(&lib)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "so") {
            files.push(path);
        }
    }
    let text = list_libraries(&files, &lib).context("cannot list the libraries of what was built")?;
    let missing: BTreeSet<&str> =
        text.lines().filter(|line| line.contains("not found")).map(str::trim).collect();
    ensure!(
        missing.is_empty(),
        "what was built does not load: {}",
        missing.into_iter().collect::<Vec<_>>().join(", ")
    );
    // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader itself. The kernel's vdso has no path.
    let paths = text.lines().filter_map(|line| {
        let line = line.split_once(" (0x")?.0.trim();
        Some(PathBuf::from(line.split_once(" => ").map_or(line, |(_, path)| path)))
    });
    Ok(paths.filter(|path| path.is_absolute() && !path.starts_with(prefix)).collect())
}

/// What the loader of these files prints about the libraries that they load, as `ldd` does. The first file has to be a program.
fn list_libraries(files: &[PathBuf], lib: &Path) -> Result<String> {
    let prepared = |command: Expression| {
        // A library that is preloaded would be on the list.
        command.env("LD_LIBRARY_PATH", lib).env("LC_ALL", "C").env_remove("LD_PRELOAD").read()
    };
    let headers = prepared(duct::cmd!("readelf", "--program-headers", "--wide", &files[0]))?;
    let interpreter = headers.split_once("interpreter: ").and_then(|(_, rest)| rest.split_once(']'));
    match interpreter {
        // musl's loader takes one file at a time. The machine's `ldd` may be glibc's, which does not know musl.
        Some((loader, _)) if loader.contains("/ld-musl-") => {
            let mut text = String::new();
            for file in files {
                text += &prepared(duct::cmd!(loader, "--list", file))?;
                text.push('\n');
            }
            Ok(text)
        }
        _ => Ok(prepared(duct::cmd("ldd", files))?),
    }
}

/// The Debian package of each library, as `NAME:ARCH`.
fn owners(libraries: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, String> {
    // Where /lib is a link to /usr/lib, a file has two paths: dpkg may know one of them, and the loader the other.
    let candidates = |library: &Path| {
        let mut all = vec![library.to_owned()];
        all.extend(library.strip_prefix("/usr").ok().map(|rest| Path::new("/").join(rest)));
        all.extend(library.strip_prefix("/lib").ok().map(|rest| Path::new("/usr/lib").join(rest)));
        all.extend(library.canonicalize());
        all
    };
    let paths: Vec<PathBuf> = libraries.iter().flat_map(|library| candidates(library)).collect();
    // It fails if it does not know one of the paths, but prints what it knows.
    let answer = duct::cmd("dpkg-query", [PathBuf::from("--search")].iter().chain(&paths))
        .env("LC_ALL", "C")
        .stderr_null()
        .unchecked()
        .read()
        .unwrap_or_default();
    let known: BTreeMap<&str, &str> =
        answer.lines().filter_map(|line| line.rsplit_once(": ")).map(|(owner, path)| (path, owner)).collect();
    let owner = |library: &PathBuf| {
        let owner = candidates(library).iter().find_map(|path| known.get(path.to_str()?).copied())?;
        Some((library.clone(), owner.to_owned()))
    };
    libraries.iter().filter_map(owner).collect()
}

/// The version of each package.
fn versions<'a>(packages: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    let format = "--showformat=${binary:Package} ${Version}\\n";
    let packages: BTreeSet<&str> = packages.map(String::as_str).collect();
    if packages.is_empty() {
        return BTreeMap::new();
    }
    let answer = duct::cmd("dpkg-query", ["--show", format].into_iter().chain(packages))
        .stderr_null()
        .unchecked()
        .read()
        .unwrap_or_default();
    answer
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect()
}

/// Percent-encodes a part of a package URL.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::series::Patch;

    fn manifest() -> Manifest {
        Manifest {
            schema_version: manifest::SCHEMA_VERSION,
            release: "2.0.0".to_owned(),
            commit: "1f66".to_owned(),
            epoch: 1,
            variant: "patched".to_owned(),
            prefix: "/opt/guacd".into(),
            patches: vec![Patch {
                name: "0001-a.patch".to_owned(),
                group: "keys".to_owned(),
                sha256: "aaaa".to_owned(),
            }],
            tls_rs: Some("bbbb".to_owned()),
            compiler: "cc 12".to_owned(),
            rustc: "rustc 1.85.1 (4eb161250 2025-03-15)".to_owned(),
            configure: Vec::new(),
            environment: Vec::new(),
            protocols: vec!["ssh".to_owned()],
            digest: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".to_owned(),
        }
    }

    fn as_json(crates: &[&str]) -> serde_json::Value {
        let release = Release::load(None).unwrap();
        let crates: BTreeSet<String> = crates.iter().map(|one| (*one).to_owned()).collect();
        serde_json::to_value(bill(&manifest(), &release, &crates, Vec::new())).unwrap()
    }

    #[test]
    fn the_bill_names_upstream_every_patch_and_every_crate() {
        let bill = as_json(&["tls-rs v0.1.0", "memchr v2.7.6"]);
        assert_eq!(bill["serialNumber"], "urn:uuid:01234567-89ab-8def-8123-456789abcdef");
        let names = |component: &serde_json::Value| component["name"].as_str().unwrap().to_owned();
        let components = bill["components"].as_array().unwrap();
        let all: Vec<String> = components.iter().map(names).collect();
        assert_eq!(all, ["guacamole-server", "0001-a.patch", "tls-rs", "memchr", "rust-core"]);
        let (downloads, release) = (&components[0]["externalReferences"], Release::load(None).unwrap());
        for (index, origin) in release.origins.iter().enumerate() {
            assert_eq!(downloads[index]["hashes"][0]["content"], origin.sha256);
        }
        assert_eq!(downloads[release.origins.len()]["url"], release.git);
        assert_eq!(components[1]["hashes"][0]["content"], "aaaa");
        assert_eq!(components[3]["purl"], "pkg:cargo/memchr@2.7.6");
        assert_eq!(components[4]["version"], "1.85.1");
        let references: BTreeSet<&str> =
            components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(references.len(), components.len(), "a reference stands for two components");
        let depends = bill["dependencies"][0]["dependsOn"].as_array().unwrap();
        assert_eq!(depends.len(), components.len());
    }

    #[test]
    fn a_library_without_crates_is_listed_with_none() {
        let bill = as_json(&["tls-rs v0.1.0"]);
        assert_eq!(bill["components"][2]["properties"][0]["value"], "none");
    }

    #[test]
    fn the_libraries_that_the_loader_finds_are_listed() {
        // A prefix whose guacd is whatever runs this test.
        let prefix = tempfile::TempDir::new().unwrap();
        fs::create_dir_all(prefix.path().join("lib")).unwrap();
        fs::create_dir(prefix.path().join("sbin")).unwrap();
        fs::copy(std::env::current_exe().unwrap(), prefix.path().join("sbin/guacd")).unwrap();
        let libraries = loaded(prefix.path()).unwrap();
        assert!(libraries.iter().any(|path| path.ends_with("libc.so.6")), "{libraries:?}");
        assert_eq!(encoded("libstdc++6@1:2~3"), "libstdc%2B%2B6%401%3A2~3");
        if owners(&libraries).is_empty() {
            return; // This is not Debian.
        }
        let components = system_libraries(prefix.path()).unwrap();
        let libc = components.iter().find(|component| component.name == "libc6").unwrap();
        assert!(libc.purl.starts_with("pkg:deb/") && !libc.version.is_empty(), "{}", libc.purl);
    }
}
