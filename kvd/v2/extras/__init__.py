"""What requests may say beyond etcd's v2 API, and values in other shapes. Pure."""
