package probe

import "golang.org/x/sys/unix"

// Possible says why this process cannot probe: it lacks CAP_NET_RAW.
func Possible() error {
	fd, err := rawSocket(false)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
