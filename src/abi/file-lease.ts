/** Leases of open files. Thread: any. Spec: fcntl(2) "Leases"; Linux include/uapi/linux/fcntl.h */
export const F_SETSIG = 10;
export const F_SETLEASE = 1024;
export const SIGURG = 23;
