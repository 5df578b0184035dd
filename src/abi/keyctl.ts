/** The kernel's keys. Spec: Linux include/uapi/linux/keyctl.h */
export const KEYCTL_READ = 11;
