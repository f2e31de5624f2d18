package main

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFileMappings(t *testing.T) {
	const smaps = `00400000-0118f000 r-xp 00000000 fe:00 1234                               /opt/bin/flanneld
Rss:               13000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
0118f000-01200000 r--p 00d8f000 fe:00 1234                               /opt/a name with spaces
Rss:                 400 kB
Anonymous:             0 kB
01200000-01201000 r--p 00e00000 fe:00 1234                               /opt/bin/flanneld
Rss:                   4 kB
Anonymous:             4 kB
01201000-01300000 rw-p 00e01000 fe:00 1234                               /opt/bin/flanneld
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0x118f000}, {0x118f000, 0x1200000}}
	if diff := cmp.Diff(want, fileMappings([]byte(smaps)), cmp.AllowUnexported(mapping{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReleaseProgram(t *testing.T) {
	before := residentFile(t)
	if err := releaseProgram(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after >= before {
		t.Errorf("%d kB of files mapped before, %d after", before, after)
	}
}

func residentFile(t *testing.T) int {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.Atoi(string(regexp.MustCompile(`RssFile:\s*(\d+)`).FindSubmatch(raw)[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
