package image

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The parts of SPDX 2.3 that are used.
type spdx struct {
	Version       string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      spdxCreation   `json:"creationInfo"`
	Packages      []spdxPackage  `json:"packages"`
	Relationships []spdxRelation `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	Name             string         `json:"name"`
	ID               string         `json:"SPDXID"`
	Version          string         `json:"versionInfo,omitempty"`
	Download         string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	LicenseConcluded string         `json:"licenseConcluded"`
	LicenseDeclared  string         `json:"licenseDeclared"`
	Copyright        string         `json:"copyrightText"`
	Purpose          string         `json:"primaryPackagePurpose,omitempty"`
	Comment          string         `json:"comment,omitempty"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
	References       []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelation struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// SBOM returns an SPDX 2.3 document in JSON: the image, its programs, and the modules that the build
// information in each of them names, which are those that it was linked from.
func SBOM(name string, s Spec, img *Image) ([]byte, error) {
	repository, version, _ := strings.Cut(name, ":")
	doc := spdx{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name + " linux/" + s.Arch,
		Namespace: "https://" + repository + "/spdx/" + strings.Replace(img.Manifest.Digest, ":", "-", 1),
		Creation:  spdxCreation{s.Created.UTC().Format(time.RFC3339), []string{"Tool: weft-image"}},
	}
	whole := newPackage(name, "image", version)
	whole.Purpose, whole.Checksums = "CONTAINER", []spdxChecksum{{"SHA256", strings.TrimPrefix(img.Manifest.Digest, "sha256:")}}
	whole.References = purl(fmt.Sprintf("pkg:oci/%s@%s?repository_url=%s&arch=%s", path.Base(repository), img.Manifest.Digest, repository, s.Arch))
	doc.Packages = append(doc.Packages, whole)
	doc.relate(doc.ID, "DESCRIBES", whole.ID)
	modules := map[string]spdxPackage{}
	for _, f := range s.Files {
		if f.Source == "" {
			continue
		}
		if err := doc.program(f, version, whole.ID, modules); err != nil {
			return nil, err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(modules)) {
		doc.Packages = append(doc.Packages, modules[id])
	}
	raw, err := json.MarshalIndent(doc, "", "  ")
	return append(raw, '\n'), err
}

// program adds a program and notes its modules.
func (d *spdx) program(f File, version, whole string, modules map[string]spdxPackage) error {
	info, err := buildinfo.ReadFile(f.Source)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	p := newPackage(info.Path, f.Path, version)
	p.Purpose, p.Comment = "APPLICATION", f.Path
	d.Packages = append(d.Packages, p)
	d.relate(whole, "CONTAINS", p.ID)
	add := func(m spdxPackage) {
		modules[m.ID] = m
		d.relate(p.ID, "DEPENDS_ON", m.ID)
	}
	std := newPackage("stdlib", "go-"+info.GoVersion, info.GoVersion)
	std.LicenseDeclared = "BSD-3-Clause"
	std.References = purl("pkg:golang/stdlib@" + strings.TrimPrefix(info.GoVersion, "go"))
	add(std)
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		m := newPackage(dep.Path, "go-"+dep.Path+"-"+dep.Version, dep.Version)
		m.Comment = "go.sum " + dep.Sum
		m.References = purl("pkg:golang/" + dep.Path + "@" + dep.Version)
		add(m)
	}
	return nil
}

func newPackage(name, id, version string) spdxPackage {
	const unknown = "NOASSERTION"
	// An identifier may have letters, digits, dots and dashes (SPDX 2.3, clause 7.2).
	id = regexp.MustCompile(`[^A-Za-z0-9.]+`).ReplaceAllString(id, "-")
	return spdxPackage{Name: name, ID: "SPDXRef-" + strings.Trim(id, "-"), Version: version, Download: unknown,
		LicenseConcluded: unknown, LicenseDeclared: unknown, Copyright: unknown}
}

func purl(locator string) []spdxRef {
	return []spdxRef{{"PACKAGE-MANAGER", "purl", locator}}
}

func (d *spdx) relate(from, kind, to string) {
	d.Relationships = append(d.Relationships, spdxRelation{from, kind, to})
}
