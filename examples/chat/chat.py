"""Chat with a model in a terminal: python chat.py --model BUNDLE; Ctrl-C ends an answer, Ctrl-D the chat."""

import argparse

from tfm.errors import InputError
from tfm.runtime import load

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="SmolLM2-135M-Instruct.tfm", help="a decoder that was tuned on ChatML")
parser.add_argument("--system", default="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
parser.add_argument("--max-new-tokens", type=int, default=256)
parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest answer; 0.2 or so: others too")
args = parser.parse_args()

START, END = "<|im_start|>", "<|im_end|>"
settings = {"do_sample": True, "temperature": args.temperature, "top_p": 0.9} if args.temperature else {}

with load(args.model) as model:
    [end] = model.tokenize([END])
    chat = model.conversation()  # keeps what was read and said in the cache: a turn reads no more than is new
    while True:
        before = f"{START}system\n{args.system}{END}\n"
        if chat.tokens:  # an answer that was cut off has no end yet
            before = "\n" if chat.tokens[-1:] == end else f"{END}\n"
        try:
            turn = f"{before}{START}user\n{input('> ')}{END}\n{START}assistant\n"
            for part in chat.reply(turn, args.max_new_tokens, stop_token_ids=end, **settings):
                print(part, end="", flush=True)
        except EOFError:
            break
        except KeyboardInterrupt:
            pass
        except InputError as error:
            print(f"{error}\nThe conversation begins anew.")
            chat = model.conversation()
        print()
