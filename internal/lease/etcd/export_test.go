package etcd

// Encode and Decode are open to the tests outside.
var (
	Encode = encode
	Decode = decode
)
