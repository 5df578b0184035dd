/** The names of all trace points: QEMU's where it has a point for the same thing. Pure. */

export const TRACE_NAMES = [
  // Monitors. Spec: QEMU monitor/trace-events
  "monitor_protocol_event_queue",
  "monitor_protocol_event_emit",
  "monitor_suspend",
  "monitor_qmp_in_band_enqueue",
  "monitor_qmp_in_band_dequeue",
  "monitor_qmp_cmd_in_band",
  "monitor_qmp_err_in_band",
  "monitor_qmp_cmd_out_of_band",
  "monitor_qmp_respond",
  "handle_qmp_command",
  // Commands, whoever gives them.
  "qmp_enter",
  "qmp_exit",
  // Objects. Spec: QEMU qom/trace-events
  "object_new",
  "object_finalize",
  "user_creatable_complete",
  // Block nodes and exports. Spec: QEMU block/trace-events
  "bdrv_open_common",
  "bdrv_close",
  "bdrv_move",
  "bdrv_reopen",
  "bdrv_drained_begin",
  "bdrv_drained_end",
  "blk_root_attach",
  "blk_root_detach",
  "blk_exp_add",
  "blk_exp_request_shutdown",
  "blk_exp_delete",
  "blk_co_preadv",
  "blk_co_pwritev",
  "blk_request_failed",
  "throttle_wait",
  // The NBD server. Spec: QEMU nbd/trace-events
  "nbd_server_listen",
  "nbd_client_connect",
  "nbd_client_disconnect",
  "nbd_negotiate_begin",
  "nbd_negotiate_options_flags",
  "nbd_negotiate_options_check_option",
  "nbd_negotiate_handle_export_name_request",
  "nbd_negotiate_meta_context",
  "nbd_negotiate_send_rep_err",
  "nbd_negotiate_success",
  "nbd_negotiate_fail",
  "nbd_handshake_timer_cb",
  "nbd_receive_request",
  "nbd_co_send_simple_reply",
  "nbd_co_send_chunk_error",
  // iothreads
  "iothread_start",
  "iothread_stop",
  "io_engine",
] as const;

export type TraceName = (typeof TRACE_NAMES)[number];
