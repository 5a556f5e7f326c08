//! The OCI image layout: `oci-layout`, `index.json` and blobs by their digests (OCI image
//! specification 1.0, image-layout.md).

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{PROGRAM, layer::Layer};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The tag of the image.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A layout that is being written.
#[derive(Debug)]
pub(super) struct Layout {
    directory: PathBuf,
}

/// What has been written.
#[derive(Debug)]
pub(super) struct Image {
    /// Of its manifest: what the image is called by exactly.
    pub(super) digest: String,
    /// What of it is transferred, in bytes.
    pub(super) size: usize,
}

impl Layout {
    pub(super) fn create(directory: &Path) -> anyhow::Result<Self> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("creating {}", blobs.display()))?;
        let layout = Self {
            directory: directory.to_owned(),
        };
        layout.write(
            "oci-layout",
            &to_bytes(&json!({"imageLayoutVersion": "1.0.0"})),
        )?;
        Ok(layout)
    }

    /// Writes the image that has this layer, and the index that names it.
    pub(super) fn image(&self, layer: &Layer) -> anyhow::Result<Image> {
        let layer_blob = self.blob(LAYER, &layer.compressed)?;
        let config = to_bytes(&config(&layer.diff_id)?);
        let config_blob = self.blob(CONFIG, &config)?;
        let manifest = to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config_blob,
            "layers": [layer_blob],
        }));
        let mut manifest_blob = self.blob(MANIFEST, &manifest)?;
        let image = Image {
            digest: manifest_blob["digest"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            size: layer.compressed.len() + config.len() + manifest.len(),
        };
        manifest_blob["annotations"] = json!({"org.opencontainers.image.ref.name": VERSION});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest_blob],
        });
        self.write("index.json", &to_bytes(&index))?;
        Ok(image)
    }

    /// Stores a blob; returns its descriptor.
    fn blob(&self, media_type: &str, content: &[u8]) -> anyhow::Result<Value> {
        let digest = digest(content);
        self.write(&format!("blobs/{}", digest.replace(':', "/")), content)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
    }

    fn write(&self, path: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.directory.join(path);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
    }
}

/// What a container engine must know to run it. No time of creation, so that it is the same again.
fn config(diff_id: &str) -> anyhow::Result<Value> {
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("what do container images call {other}?"),
    };
    Ok(json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            // The agent is nothing without capabilities, which only root keeps at the start.
            "User": "0:0",
            "Env": ["PATH=/usr/local/bin"],
            "Entrypoint": [format!("/{PROGRAM}")],
            "Labels": {
                "org.opencontainers.image.title": "underpass",
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "cargo xtask image"}],
    }))
}

/// What content is called.
pub(super) fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn to_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_its_algorithm() {
        // FIPS 180-4, the empty message.
        assert_eq!(
            digest(b""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn every_blob_is_where_its_descriptor_says() {
        let directory = tempfile::tempdir().unwrap();
        let layer = Layer::new([("file", 0o644, &b"content"[..])]).unwrap();
        let image = Layout::create(directory.path())
            .unwrap()
            .image(&layer)
            .unwrap();
        let read = |path: &str| fs::read(directory.path().join(path)).unwrap();
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap();
            let content = read(&format!("blobs/{}", name.replace(':', "/")));
            assert_eq!(digest(&content), name);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let json = |content: &[u8]| -> Value { serde_json::from_slice(content).unwrap() };
        let index = json(&read("index.json"));
        assert_eq!(index["manifests"][0]["digest"], image.digest);
        let manifest = json(&blob(&index["manifests"][0]));
        assert_eq!(blob(&manifest["layers"][0]), layer.compressed);
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.diff_id);
        assert_eq!(json(&read("oci-layout"))["imageLayoutVersion"], "1.0.0");
    }
}
