// Command flannel is the CNI plugin. Called as bridge, host-local, portmap, bandwidth or loopback, by a
// link of that name, it does their work. "flannel install" puts it in place.
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/weftnet/weft/internal/cni"
)

// release is set by the linker.
var release = "dev"

func main() {
	// A call lives for milliseconds and does one thing after the other: more threads and a collector only
	// cost it time.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	os.Exit(cni.Main(os.Args, release))
}
